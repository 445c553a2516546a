"""What a page is made of: numbers that may be absent, tables, notes, sections.

A metric that a stage did not write is `None` all the way to the page, where it is a dash: nothing
here replaces a missing number by another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stepwiser.annotation.statistics import Z95
from stepwiser.annotation.values import ValueEstimate

ABSENT = "–"

JUDGES = {
    "judge": ("StepWiser judge (after RL)", 0),
    "judge-discriminative": ("discriminative SFT baseline", 1),
    "start": ("start (before RL)", 3),
    "warm start": ("warm start (before RL)", 5),
    "start, forced": ("start, made to reason", 2),
}
"""Title and colour of the judges that the stages name; others are shown under their own name."""


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
