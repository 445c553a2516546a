"""Figures of a part on disk, from the moment they are known."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = Callable[..., None]
"""Notes figures by name."""


def figures_file(out: Path, name: str) -> Path:
    return out / "parts" / f"{name}.jsonl"


def read_figures(out: Path, name: str) -> dict[str, Any]:
    """All that a part has noted, the latest of each name."""
    file = figures_file(out, name)
    found: dict[str, Any] = {}
    if file.is_file():
        for row in file.read_text().splitlines():
            found |= json.loads(row)
    return found


def recorder(out: Path, name: str) -> Record:
    """Notes figures of a part, with the seconds since its beginning."""
    file = figures_file(out, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    began = time.monotonic()

    def record(**figures: Any) -> None:
        row = json.dumps({**figures, "at_s": round(time.monotonic() - began, 1)})
        with file.open("a") as opened:
            opened.write(row + "\n")
        print(row, flush=True)

    return record
