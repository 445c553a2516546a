"""Answers that were paid for, kept as they come: a mapping in a file of one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from stepwiser.run.store import json_lines

_KEY = "key"


class AnswersFile(MutableMapping[str, dict[str, Any]]):
    """What was set is on disk when the call returns; a line that was cut off is asked again.

    One process writes it at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = {
            row.pop(_KEY): row for row in json_lines(path) if isinstance(row.get(_KEY), str)
        }
        # After what a killed process cut off.
        self._broken = path.is_file() and not path.read_bytes().endswith(b"\n")

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._rows[key]

    def __setitem__(self, key: str, value: dict[str, Any]) -> None:
        self._rows[key] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._broken + json.dumps({_KEY: key, **value}) + "\n")
        self._broken = False

    def __delitem__(self, key: str) -> None:
        raise TypeError(f"{self._path} keeps what it has; {key!r} stays")

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
