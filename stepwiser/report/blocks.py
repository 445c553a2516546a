"""What a page is made of: numbers that may be absent, tables, figures, bars, sections.

A metric that a stage did not write is `None` all the way to the page, where it is a dash: nothing
here replaces a missing number by another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from stepwiser.annotation.values import ValueEstimate

Z95 = 1.959963984540054
ABSENT = "–"

JUDGES = {
    "judge": ("StepWiser judge (after RL)", 0),
    "judge-discriminative": ("discriminative SFT baseline", 1),
    "start": ("start (before RL)", 3),
    "start, forced": ("start, made to reason", 2),
}
"""Title and colour of the judges that the stages name; others are shown under their own name."""


def pick(data: Any, *path: str) -> Any:
    """`data[path[0]][path[1]]…`, None where a part is absent."""
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    return data


def number(data: Any, *path: str) -> float | None:
    """The finite number at `path`; None for anything else."""
    value = pick(data, *path)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def mapping(data: Any, *path: str) -> dict[str, Any]:
    """The object at `path`; empty where there is none."""
    value = pick(data, *path)
    return value if isinstance(value, dict) else {}


def rows_of(data: Any, *path: str) -> list[dict[str, Any]]:
    """The list of objects at `path`; empty where there is none."""
    value = pick(data, *path)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval, or without one where none is known."""

    mean: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def normal(
        cls, mean: float | None, error: float | None, *, share: bool = True
    ) -> Estimate | None:
        """Mean ± 1.96 standard errors, within 0..1 for a share.

        A standard error of 0 comes from outcomes that are all alike; it bounds nothing.
        """
        if mean is None:
            return None
        if error is None or error <= 0:
            return cls(mean)
        low, high = mean - Z95 * error, mean + Z95 * error
        return cls(mean, max(0.0, low), min(1.0, high)) if share else cls(mean, low, high)

    @classmethod
    def share(cls, mean: float | None, count: float | None) -> Estimate | None:
        """A share of `count` independent things, with its Wilson interval."""
        if mean is None:
            return None
        if not count or not 0.0 <= mean <= 1.0:
            return cls(mean)
        return cls(mean, *ValueEstimate(round(mean * count), int(count)).interval())

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"[{self.low:.3f}, {self.high:.3f}]"

    @property
    def signed_interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"[{self.low:+.3f}, {self.high:+.3f}]"


# --- text ------------------------------------------------------------------------------------


def decimal(value: float | None, places: int = 3) -> str:
    return ABSENT if value is None else f"{value:.{places}f}"


def percent(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1%}"


def whole(value: float | None) -> str:
    """A count with thin separators."""
    return ABSENT if value is None else f"{value:,.0f}"


def brief(value: float | None) -> str:
    """A number of unknown size in few characters."""
    if value is None:
        return ABSENT
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return (
        f"{value:,.0f}"
        if value == int(value)
        else f"{value:.3g}"
        if abs(value) < 100
        else f"{value:,.1f}"
    )


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def judge_title(name: str) -> str:
    return JUDGES[name][0] if name in JUDGES else name


def judge_colour(name: str, names: Sequence[str]) -> int:
    """The same judge has the same colour all over the page."""
    if name in JUDGES:
        return JUDGES[name][1]
    others = [other for other in names if other not in JUDGES]
    return 4 + others.index(name) % 2 if name in others else 4


# --- blocks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A table cell: text over a bar of 0..1 of the cell."""

    fraction: float | None
    text: str


@dataclass(frozen=True)
class Table:
    """Cells are text, an `Estimate`, or a `Bar`; the first of a row is its heading."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Estimate | Bar | None]]
    title: str = ""
    note: str = ""
    total: bool = False
    """The last row sums the others."""
    kind: str = "table"


@dataclass(frozen=True)
class Legend:
    """One entry below a figure's title."""

    text: str
    colour: int
    line: bool = False


@dataclass(frozen=True)
class Figure:
    title: str
    svg: Markup
    legend: Sequence[Legend] = ()
    note: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Figures:
    """Figures side by side, as many as the window has room for."""

    items: Sequence[Figure]
    kind: str = "figures"


@dataclass(frozen=True)
class Interval:
    """One line of `Bars`: positions are percent of the track."""

    name: str
    colour: int
    estimate: Estimate
    low: float = 0.0
    high: float = 1.0
    signed: bool = False
    note: str = ""

    def place(self, value: float | None) -> float:
        if value is None:
            return 0.0
        part = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, part)), 2)

    @property
    def start(self) -> float:
        return self.place(min(0.0, self.estimate.mean))

    @property
    def end(self) -> float:
        return self.place(max(0.0, self.estimate.mean))

    @property
    def text(self) -> str:
        return f"{self.estimate.mean:+.3f}" if self.signed else f"{self.estimate.mean:.3f}"

    @property
    def interval(self) -> str:
        return self.estimate.signed_interval if self.signed else self.estimate.interval


@dataclass(frozen=True)
class Bars:
    """Horizontal bars with their 95% intervals."""

    title: str
    rows: Sequence[Interval]
    note: str = ""
    kind: str = "bars"


@dataclass(frozen=True)
class BarGroups:
    """Several `Bars` side by side."""

    items: Sequence[Bars]
    kind: str = "groups"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Sequence[tuple[str, str]]
    title: str = ""
    kind: str = "facts"


@dataclass(frozen=True)
class Note:
    text: str
    kind: str = "note"


@dataclass
class Section:
    """One heading of the page and what stands below it."""

    anchor: str
    title: str
    lead: str = ""
    blocks: list[Any] = field(default_factory=list)
    missing: str = ""
    """The command that makes what this section shows."""

    def add(self, *blocks: Any) -> None:
        """Append blocks, leaving out those without content."""
        for block in blocks:
            rows = getattr(block, "rows", None)
            items = getattr(block, "items", None)
            if block is not None and (rows is None or rows) and (items is None or items):
                self.blocks.append(block)


def signed_rows(rows: Sequence[tuple[str, Estimate | None, str]]) -> list[Interval]:
    """Differences on one track that is symmetric around 0."""
    known = [(name, estimate, note) for name, estimate, note in rows if estimate is not None]
    reach = max(
        (abs(v) for _, e, _ in known for v in (e.mean, e.low, e.high) if v is not None), default=0.0
    )
    limit = max(0.05, 1.15 * reach)
    return [
        Interval(name, 0, estimate, -limit, limit, signed=True, note=note)
        for name, estimate, note in known
    ]
