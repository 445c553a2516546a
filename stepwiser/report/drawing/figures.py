"""What a page draws: figures with their legends, and bars with their 95% intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from stepwiser.report.blocks import Estimate


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
