"""Figures in words and in tables, for terminals and logs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table

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


def number(value: float | None) -> str:
    """Three places, or a dash for what is not known."""
    return known(value, "{:.3f}")


def plus_minus(value: float | None, error: float | None) -> str:
    """A figure with its standard error, where there is one."""
    return number(value) + ("" if value is None or error is None else f" ± {error:.3f}")


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A figure with its 95% interval, where there is one."""
    bounded = low is not None and high is not None
    return number(value) + (f" [{low:.3f}, {high:.3f}]" if bounded else "")


def titled_table(title: str, *columns: str, left: Sequence[str] | None = None) -> Table:
    """A table of figures, set right but for the columns of ``left`` (None: the first one)."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        is_left = i == 0 if left is None else column in left
        table.add_column(column, justify="left" if is_left else "right", overflow="fold")
    return table


def facts_table(rows: Iterable[tuple[str, object]], title: str | None = None) -> Table:
    """Names and their values, below no heading."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, str(value))
    return table
