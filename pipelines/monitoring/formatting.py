"""Figures in words, for tables and logs."""

from __future__ import annotations

from collections.abc import Callable

MOST_ENGINES = 12
"""That a table names one by one."""


def known(
    value: float | None, words: str, show: Callable[[float], object] = lambda value: value
) -> str:
    """The words with the value in them, or a dash for what is not known."""
    return "-" if value is None else words.format(show(value))


def duration(seconds: float) -> str:
    """`3 d 4 h`, `2 h 5 min`, `3 min 20 s`, `12 s`: the two largest parts."""
    for size, name, less, part in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= size:
            return f"{int(seconds // size)} {name} {int(seconds % size // less)} {part}"
    return f"{int(seconds)} s"
