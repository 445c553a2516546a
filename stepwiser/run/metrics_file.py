"""metrics.jsonl of a run: one JSON object a line, appended by several processes at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stepwiser.storage.folder import Folder
from stepwiser.storage.interface import Storage
from stepwiser.storage.lines import PART, add_line
from stepwiser.storage.places import open_storage

Metrics = dict[str, Any]


def append_metrics(path: str, kind: str, name: str, metrics: Metrics) -> None:
    """Add one line; safe while other processes append lines of their own to the same file.

    ``path``: may lie at an address, see `stepwiser.storage.lines`.
    """
    storage, file = _place(path)
    line = json.dumps({"kind": kind, "name": name, "time": time.time(), **metrics})
    add_line(storage, file, line)


def _place(path: str) -> tuple[Storage, str]:
    folder, _, file = path.rpartition("/")
    return open_storage("run_dir", folder), file


def read_metrics(path: str, kind: str, name: str) -> list[Metrics]:
    """The training curve of one run, in the order of its steps.

    Steps that were lost with a crash and trained again stand in the file twice: the later line is
    the one whose update is in the weights.
    """
    lines = MetricsTail(path, (kind,)).read()
    by_step = {line["step"]: line for line in lines if line.get("name") == name and "step" in line}
    return [by_step[step] for step in sorted(by_step)]


LOST = "lost"
"""Key of a line that lacks figures: says which."""


def write_lost(path: str, kind: str, name: str, steps: int) -> list[int]:
    """Add a line for every step of a run that has none; returns those steps.

    A process that is killed between an update and its line takes the figures with it.
    """
    known = {line["step"] for line in read_metrics(path, kind, name)}
    missing = [step for step in range(steps) if step not in known]
    for step in missing:
        append_metrics(path, kind, name, {"step": step, LOST: "all figures"})
    return missing


class MetricsTail:
    """Reads a growing metrics file from where it stopped the last time."""

    def __init__(self, path: str, kinds: Sequence[str], *, from_end: bool = False) -> None:
        """``from_end``: leave out what the file holds already."""
        self._path = path
        self._kinds = kinds
        self._read: dict[str, int] = {}
        """Bytes that were read, of the file or of each of its parts."""
        if from_end:
            self.read()

    def read(self) -> list[Metrics]:
        text = b"".join(self._new())
        lines = (_whole(line) for line in text.split(b"\n"))
        return [line for line in lines if line.get("kind") in self._kinds]

    def _new(self) -> Iterator[bytes]:
        storage, file = _place(self._path)
        if isinstance(storage, Folder):
            yield from self._new_of_file(storage.root / file)
            return
        for part in storage.names(file):
            # A part of that size has another one after it.
            if self._read.get(part, 0) <= PART:
                text = storage.read(part)
                yield text[self._read.get(part, 0) :]
                self._read[part] = len(text)

    def _new_of_file(self, path: Path) -> Iterator[bytes]:
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read.get("", 0))
            text = file.read()
        # A line that is still being written is left for the next time.
        text = text[: text.rfind(b"\n") + 1]
        self._read[""] = self._read.get("", 0) + len(text)
        yield text


def _whole(line: bytes) -> Metrics:
    """The line's object; an empty one for a line that was cut off, whose step is trained again."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
