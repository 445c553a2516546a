"""Answers that were paid for, kept as they come: a mapping in a file of one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from typing import Any

from stepwiser.run.store import objects_of
from stepwiser.storage.interface import Storage
from stepwiser.storage.lines import add_line, line_bytes

_KEY = "key"


class AnswersFile(MutableMapping[str, dict[str, Any]]):
    """What was set is there to stay when the call returns; a line that was cut off is asked again.

    One process writes it at a time.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        rows = objects_of(line_bytes(storage, name).splitlines())
        self._rows = {row.pop(_KEY): row for row in rows if isinstance(row.get(_KEY), str)}

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._rows[key]

    def __setitem__(self, key: str, value: dict[str, Any]) -> None:
        self._rows[key] = value
        add_line(self._storage, self._name, json.dumps({_KEY: key, **value}))

    def __delitem__(self, key: str) -> None:
        raise TypeError(f"{self._name} keeps what it has; {key!r} stays")

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
