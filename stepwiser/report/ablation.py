"""The table and the plots of an ablation, as Markdown, as one page, and as pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup

from stepwiser.report.blocks import ABSENT, Note, Section, Table
from stepwiser.report.build import Page
from stepwiser.report.drawing.charts import marker, nice_ticks, reach, tick_texts
from stepwiser.report.drawing.figures import Figure, Figures
from stepwiser.training.ablation import START, Difference, Results, as_dict, difference, summarize

MAIN = "f1"

FIGURES = {
    MAIN: "F1",
    "error_accuracy": "errors found",
    "correct_accuracy": "right passed",
    "majority_f1": "F1, majority",
    "missing_share": "no verdict",
    "tokens": "tokens",
    "train_minutes": "minutes to train",
}
"""What the table shows of an arm, and under which name."""

STYLE = (
    "text{font:12px sans-serif;fill:#535a63}.grid{stroke:#eef0f2}.guide{stroke:#535a63;"
    "stroke-dasharray:4 4}.dots{stroke:#0b6bb0;stroke-width:4;stroke-linecap:round;opacity:.3}"
    ".whisker{fill:none;stroke:#0b6bb0;stroke-width:1.5}.mark{fill:#0b6bb0;stroke:#fff}"
    ".line{fill:none;stroke-width:2}.line.c0{stroke:#0b6bb0}.line.c1{stroke:#b5491f}"
    ".line.c2{stroke:#0a7d57}"
)
"""Of a picture outside of a page."""

PLACES = {"tokens": 1, "train_minutes": 1}


@dataclass(frozen=True)
class Ablation:
    """All that is known of a comparison when it is written down."""

    name: str
    reference: str
    changes: Mapping[str, Mapping[str, Any]]
    """What each arm changes, in the order of the table."""
    results: Results
    seeds: Sequence[int]
    lead: str
    """What was judged, and how often."""

    @property
    def arms(self) -> list[str]:
        """Arms with results, in order; the judge before training last."""
        known = [arm for arm in self.changes if self.results.get(arm)]
        return [*known, START] if self.results.get(START) else known


@dataclass(frozen=True)
class Row:
    """One line of a picture: a mean, its interval, single values."""

    name: str
    mean: float
    low: float | None
    high: float | None
    values: Sequence[float] = ()


def intervals(title: str, rows: Sequence[Row], *, zero: bool) -> Markup:
    """Means with intervals below each other; `zero` adds the line where nothing differs."""
    name, width, height, top = 190, 620, 26, 30
    right = width - 70
    ends = [v for r in rows for v in (r.mean, r.low, r.high, *r.values) if v is not None]
    low, high = reach([*ends, 0.0] if zero else ends)
    low, high = (low, high) if zero else (max(0.0, low), min(1.0, high))
    bottom = top + height * len(rows)

    def x(value: float) -> float:
        return name + (value - low) / (high - low) * (right - name)

    ticks = nice_ticks(low, high)
    parts = [
        f'<path class="grid" d="M{x(v):.1f} {top - 6}V{bottom}"/>'
        f'<text class="tick" x="{x(v):.1f}" y="{bottom + 17}" text-anchor="middle">{t}</text>'
        for v, t in zip(ticks, tick_texts(ticks), strict=True)
    ]
    parts.append(f'<text class="name" x="2" y="13">{escape(title)}</text>')
    if zero:
        parts.append(f'<path class="guide" d="M{x(0):.1f} {top - 6}V{bottom}"/>')
    for i, row in enumerate(rows):
        y = top + height * i + height / 2
        drawn = [
            f'<path class="dots" d="{"".join(f"M{x(v):.1f} {y:.1f}h0" for v in row.values)}"/>'
        ]
        if row.low is not None and row.high is not None:
            a, b = x(row.low), x(row.high)
            drawn.append(
                f'<path class="whisker" d="M{a:.1f} {y:.1f}H{b:.1f}M{a:.1f} {y - 4:.1f}v8'
                f'M{b:.1f} {y - 4:.1f}v8"/>'
            )
        drawn.append(f'<path class="mark" d="{marker(0, x(row.mean), y, 4.0)}"/>')
        shown = f"{row.mean:+.3f}" if zero else f"{row.mean:.3f}"
        parts.append(
            f'<text x="2" y="{y + 4:.1f}">{escape(row.name)}</text><g class="c0">{"".join(drawn)}'
            f'</g><text x="{width - 2}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
        )
    label = escape(f"{title}: " + "; ".join(f"{r.name} {r.mean:.3f}" for r in rows), quote=True)
    return Markup(
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {bottom + 24}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def pictures(ablation: Ablation) -> dict[str, Markup]:
    """F1 of every arm with its seeds, and what each loses against the reference."""
    scores = []
    losses = []
    for arm in ablation.arms:
        summary = summarize(ablation.results, arm, MAIN)
        if summary is None:
            continue
        mean, error = summary.mean, summary.error
        low, high = (None, None) if error is None else (mean - error, mean + error)
        scores.append(Row(arm, mean, low, high, summary.values))
        gap = difference(ablation.results, arm, ablation.reference, MAIN)
        if gap is not None and arm != ablation.reference:
            losses.append(Row(arm, gap.mean, gap.low, gap.high))
    drawn = {}
    if scores:
        title = "F1 (official): mean ± standard error over seeds"
        drawn["scores"] = intervals(title, scores, zero=False)
    if losses:
        title = f"F1 minus that of {ablation.reference}, 95 % interval over seeds"
        drawn["differences"] = intervals(title, losses, zero=True)
    return drawn


def standalone(svg: Markup) -> str:
    """The picture as a file of its own: with a style and a ground that the page else brings."""
    head, _, body = str(svg).partition(">")
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return f"{head}><style>{STYLE}</style>{ground}{body}\n"


def markdown(ablation: Ablation) -> str:
    """The report as Markdown; the pictures lie beside it."""
    columns = [*FIGURES.values(), f"F1 − {ablation.reference} [95 %]", "F1 by seed"]
    lines = [f"# Ablation: {ablation.name}", "", ablation.lead, ""]
    lines += [f"| arm | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(cells)} |" for cells in _cells(ablation)]
    lines += ["", *(f"![{name}](ablation-{name}.svg)" for name in pictures(ablation)), ""]
    lines += ["## What the arms change", "", "| arm | settings |", "|---|---|"]
    for arm in ablation.arms:
        if arm != START:
            changes = "; ".join(f"`{k}: {v}`" for k, v in ablation.changes[arm].items())
            lines.append(f"| {arm} | {changes or 'nothing'} |")
    return "\n".join(lines) + "\n"


def _cells(ablation: Ablation) -> list[list[str]]:
    rows = []
    for arm in ablation.arms:
        cells = [f"**{arm}**" if arm == ablation.reference else arm]
        for figure in FIGURES:
            summary = summarize(ablation.results, arm, figure)
            places = PLACES.get(figure, 3)
            if summary is None:
                cells.append(ABSENT)
            elif summary.error is None or figure in PLACES:
                cells.append(f"{summary.mean:.{places}f}")
            else:
                cells.append(f"{summary.mean:.{places}f} ± {summary.error:.{places}f}")
        gap = difference(ablation.results, arm, ablation.reference, MAIN)
        cells.append(ABSENT if arm == ablation.reference else gap_text(gap))
        scores = summarize(ablation.results, arm, MAIN)
        cells.append(", ".join(f"{v:.3f}" for v in scores.values) if scores else ABSENT)
        rows.append(cells)
    return rows


def gap_text(gap: Difference | None) -> str:
    """A difference with its interval; without one where there is a single seed."""
    if gap is None:
        return ABSENT
    if gap.low is None or gap.high is None:
        return f"{gap.mean:+.3f}"
    return f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"


def html(ablation: Ablation) -> str:
    """The report as one page that loads nothing."""
    section = Section("ablation", "Arms", ablation.lead)
    titles = {"scores": "Every arm", "differences": f"Held against {ablation.reference}"}
    section.add(
        Figures([Figure(titles[k], svg, wide=True) for k, svg in pictures(ablation).items()]),
        Table(
            ["arm", *FIGURES.values(), f"F1 − {ablation.reference}", "F1 by seed"],
            [[cells[0].strip("*"), *cells[1:]] for cells in _cells(ablation)],
            note="Means ± standard errors over seeds. A difference is taken seed by seed; its "
            "interval is Student's, 95 %, over seeds.",
        ),
        Table(
            ["arm", "changes"],
            [
                [arm, "; ".join(f"{k}: {v}" for k, v in ablation.changes[arm].items()) or "nothing"]
                for arm in ablation.arms
                if arm != START
            ],
            title="What the arms change",
        ),
        Note("All arms of a seed read the same values and are scored on the same solutions."),
    )
    seeds = ", ".join(map(str, ablation.seeds))
    return Page(f"Ablation: {ablation.name}", [("seeds", seeds)], [section]).html()


TABLE = "ablation.md"
"""What `reports` calls the table."""


def reports(ablation: Ablation) -> dict[str, str]:
    """Texts of `ablation.md`, `.html`, `.json` and the pictures, by file name. Same results, same
    texts."""
    seeds = [str(seed) for seed in ablation.seeds]
    data = {
        "name": ablation.name,
        "reference": ablation.reference,
        "seeds": seeds,
        "arms": {arm: dict(changes) for arm, changes in ablation.changes.items()},
        "results": {
            arm: {str(seed): dict(row) for seed, row in sorted(rows.items())}
            for arm, rows in ablation.results.items()
        },
        "figures": {
            figure: as_dict(ablation.results, ablation.arms, ablation.reference, figure)
            for figure in FIGURES
        },
    }
    return {
        TABLE: markdown(ablation),
        "ablation.html": html(ablation),
        "ablation.json": json.dumps(data, indent=1) + "\n",
        **{f"ablation-{k}.svg": standalone(v) for k, v in pictures(ablation).items()},
    }
