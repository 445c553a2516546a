"""metrics.jsonl of a run: one JSON object a line, appended by several processes at once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Metrics = dict[str, Any]


def append_metrics(path: str, kind: str, name: str, metrics: Metrics) -> None:
    """Add one line; safe while other processes append lines of their own to the same file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"kind": kind, "name": name, "time": time.time(), **metrics}) + "\n"
    with open(path, "a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                line = "\n" + line  # after what a killed process or a full disk cut off
        file.write(line.encode())


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

    def __init__(self, path: str, kinds: Sequence[str], offset: int = 0) -> None:
        self._path = Path(path)
        self._kinds = kinds
        self._offset = offset

    def read(self) -> list[Metrics]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        # A line that is still being written is left for the next time.
        text = text[: text.rfind(b"\n") + 1]
        self._offset += len(text)
        lines = (_whole(line) for line in text.split(b"\n"))
        return [line for line in lines if line.get("kind") in self._kinds]


def _whole(line: bytes) -> Metrics:
    """The line's object; an empty one for a line that was cut off, whose step is trained again."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
