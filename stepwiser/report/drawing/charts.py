"""Small charts as inline SVG: axes, lines, marks with intervals, columns.

Colours are classes `c0`…`c7` of the page's style sheet, so that charts follow its light and dark
theme; every colour has a marker shape of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

COLOURS = 8
MAX_TICKS = 6


@dataclass(frozen=True)
class Axis:
    """One axis; `labels` put text at given places instead of round numbers."""

    title: str
    low: float
    high: float
    log: bool = False
    labels: Sequence[tuple[float, str]] = ()

    def fraction(self, value: float) -> float:
        """Where `value` lies between the ends of the axis, 0..1 inside."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        if self.labels:
            return list(self.labels)
        values = log_ticks(self.low, self.high) if self.log else nice_ticks(self.low, self.high)
        return list(zip(values, tick_texts(values), strict=True))


@dataclass(frozen=True)
class Mark:
    """A point, its interval, and what the pointer shows."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    tip: str = ""
    label: str = ""
    size: float = 4.0


def nice_ticks(low: float, high: float, most: int = MAX_TICKS) -> list[float]:
    """Round numbers within `low`..`high`, at most about `most`."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= most:
            step *= factor
            break
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within `low`..`high`; fewer where there are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(values) <= MAX_TICKS + 1:
            break
    return values


def tick_texts(values: Sequence[float]) -> list[str]:
    """Short texts that tell the values apart."""
    top = max((abs(v) for v in values), default=0.0)
    if top >= 10_000:
        return [f"{v / 1e6:g}M" if abs(v) >= 1e6 else f"{v / 1e3:g}k" if v else "0" for v in values]
    if 0 < top < 1e-3:
        return [_scientific(v) for v in values]
    return [f"{v:g}" for v in values]


def _scientific(value: float) -> str:
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def reach(values: Sequence[float], *, zero: bool = False) -> tuple[float, float]:
    """Ends of an axis for these values, with some air; from 0 if `zero`."""
    low, high = min(values), max(values)
    if zero:
        low = min(0.0, low)
        high = max(0.0, high)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if zero and low == 0 else low - air), high + air


class Plot:
    """Collects the elements of one chart."""

    LEFT, RIGHT, TOP, BOTTOM = 42.0, 12.0, 25.0, 38.0

    def __init__(self, x: Axis, y: Axis, width: int = 340, height: int = 220) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height
        self._back: list[str] = []
        self._front: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixel of a point; what lies outside the axes is moved to their edge."""
        fx = min(1.0, max(0.0, self.x.fraction(x)))
        fy = min(1.0, max(0.0, self.y.fraction(y)))
        inner = (self.width - self.LEFT - self.RIGHT, self.height - self.TOP - self.BOTTOM)
        return self.LEFT + fx * inner[0], self.height - self.BOTTOM - fy * inner[1]

    def line(self, points: Sequence[tuple[float, float]], colour: int, kind: str = "line") -> None:
        """A line through the points, in their order. `kind`: `line` or `guide` (dashed, grey)."""
        if len(points) > 1:
            self._front.append(f'<path class="{kind} c{colour}" d="{self._path(points)}"/>')

    def band(self, rows: Sequence[tuple[float, float, float]], colour: int) -> None:
        """The area between a lower and an upper curve: (x, low, high)."""
        if len(rows) > 1:
            edge = [(x, high) for x, _, high in rows] + [(x, low) for x, low, _ in reversed(rows)]
            self._back.append(f'<path class="band c{colour}" d="{self._path(edge)}Z"/>')

    def dots(self, points: Sequence[tuple[float, float]], colour: int) -> None:
        """Raw points, faint, in one path: a curve may have thousands."""
        path = "".join("M{:.1f} {:.1f}h0".format(*self.at(x, y)) for x, y in points)
        if path:
            self._back.append(f'<path class="dots c{colour}" d="{path}"/>')

    def marks(self, marks: Sequence[Mark], colour: int) -> None:
        """Points with 95 % intervals and, for the pointer, their numbers."""
        for mark in marks:
            x, y = self.at(mark.x, mark.y)
            parts = []
            if mark.low is not None and mark.high is not None:
                low, high = self.at(mark.x, mark.low)[1], self.at(mark.x, mark.high)[1]
                parts.append(
                    f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}'
                    f'M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6"/>'
                )
            parts.append(f'<path class="mark" d="{marker(colour, x, y, mark.size)}"/>')
            if mark.label:
                parts.append(
                    f'<text class="tag" x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">'
                    f"{escape(mark.label)}</text>"
                )
            tip = f"<title>{escape(mark.tip)}</title>" if mark.tip else ""
            self._front.append(f'<g class="c{colour}">{tip}{"".join(parts)}</g>')

    def columns(self, stacks: Sequence[tuple[float, Sequence[float], str]], width: float) -> None:
        """Stacked columns: (centre, heights from the bottom in colour order, tip)."""
        for centre, heights, tip in stacks:
            base, parts = self.y.low, []
            for colour, height in enumerate(heights):
                left, bottom = self.at(centre - width / 2, base)
                right, top = self.at(centre + width / 2, base + height)
                base += height
                if height > 0:
                    parts.append(
                        f'<rect class="column c{colour}" x="{left:.1f}" y="{top:.1f}" '
                        f'width="{max(1.0, right - left):.1f}" height="{bottom - top:.1f}"/>'
                    )
            self._front.append(f"<g><title>{escape(tip)}</title>{''.join(parts)}</g>")

    def svg(self, description: str) -> Markup:
        """The chart; `description` is read out in its place."""
        return Markup(
            f'<svg role="img" aria-label="{escape(description, quote=True)}" '
            f'viewBox="0 0 {self.width} {self.height}" xmlns="http://www.w3.org/2000/svg">'
            f"{self._axes()}{''.join(self._back)}{''.join(self._front)}</svg>"
        )

    def _path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join("{:.1f} {:.1f}".format(*self.at(x, y)) for x, y in points)

    def _axes(self) -> str:
        left, right = self.LEFT, self.width - self.RIGHT
        bottom = self.height - self.BOTTOM
        parts = []
        for value, text in self.y.ticks():
            y = self.at(self.x.low, value)[1]
            parts.append(
                f'<path class="grid" d="M{left} {y:.1f}H{right}"/>'
                f'<text class="tick" x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">'
                f"{escape(text)}</text>"
            )
        for value, text in self.x.ticks():
            x = self.at(value, self.y.low)[0]
            parts.append(
                f'<path class="notch" d="M{x:.1f} {bottom}v4"/>'
                f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">'
                f"{escape(text)}</text>"
            )
        parts.append(
            f'<path class="axis" d="M{left} {bottom}H{right}"/>'
            f'<text class="name" x="2" y="12">{escape(self.y.title)}</text>'
            f'<text class="name" x="{right}" y="{self.height - 5}" text-anchor="end">'
            f"{escape(self.x.title)}</text>"
        )
        return "".join(parts)


def marker(colour: int, x: float, y: float, size: float) -> str:
    """Outline of a colour's marker: circle, square, triangle, diamond, cross, triangle down,
    star, hourglass."""
    r = size
    shapes = (
        f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z",
        f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z",
        f"M{x:.1f} {y - 1.2 * r:.1f}l{1.15 * r:.1f} {2 * r:.1f}h{-2.3 * r:.1f}Z",
        f"M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r:.1f} {1.3 * r:.1f}l{-1.3 * r:.1f} {1.3 * r:.1f}"
        f"l{-1.3 * r:.1f} {-1.3 * r:.1f}Z",
        f"M{x - r / 2.5:.1f} {y - r:.1f}h{r / 1.25:.1f}v{r / 1.6:.1f}h{r / 1.6:.1f}v{r / 1.25:.1f}"
        f"h{-r / 1.6:.1f}v{r / 1.6:.1f}h{-r / 1.25:.1f}v{-r / 1.6:.1f}h{-r / 1.6:.1f}"
        f"v{-r / 1.25:.1f}h{r / 1.6:.1f}Z",
        f"M{x:.1f} {y + 1.2 * r:.1f}l{1.15 * r:.1f} {-2 * r:.1f}h{-2.3 * r:.1f}Z",
        f"M{x:.1f} {y - 1.5 * r:.1f}l{r / 2:.1f} {r:.1f}l{r:.1f} {r / 2:.1f}l{-r:.1f} {r / 2:.1f}"
        f"l{-r / 2:.1f} {r:.1f}l{-r / 2:.1f} {-r:.1f}l{-r:.1f} {-r / 2:.1f}l{r:.1f} {-r / 2:.1f}Z",
        f"M{x - r:.1f} {y - r:.1f}h{2 * r}l{-2 * r} {2 * r}h{2 * r}Z",
    )
    return shapes[colour % COLOURS]


def swatch(colour: int, line: bool) -> Markup:
    """A legend's sign: the marker, or a stroke for a line."""
    shape = (
        '<path class="line" d="M1 7H19"/>'
        if line
        else f'<path class="mark" d="{marker(colour, 10, 7, 4.5)}"/>'
    )
    return Markup(
        f'<svg class="swatch c{colour}" viewBox="0 0 20 14" aria-hidden="true">{shape}</svg>'
    )


def smooth(values: Sequence[float]) -> tuple[list[float], int]:
    """Centred moving mean and its window, an odd twentieth of the series; 1 leaves it alone."""
    half = len(values) // 40
    window = 2 * half + 1
    if half == 0 and len(values) >= 12:
        half, window = 1, 3
    result = []
    for i in range(len(values)):
        # The window shrinks at the ends so that it stays centred: no shift, no invented ends.
        reach_here = min(half, i, len(values) - 1 - i)
        part = values[i - reach_here : i + reach_here + 1]
        result.append(math.fsum(part) / len(part))
    return result, window
