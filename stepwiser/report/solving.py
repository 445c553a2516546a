"""The section about solving: accuracy of every method against tokens and seconds, and what of it
can be told from a majority vote that costs as much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stepwiser.report.blocks import (
    Estimate,
    Note,
    Section,
    Table,
    decimal,
    judge_colour,
    judge_title,
    whole,
)
from stepwiser.report.drawing.charts import Axis, Mark, Plot, reach
from stepwiser.report.drawing.figures import Figure, Figures, Legend
from stepwiser.report.reading import RunData, mapping, number, rows_of
from stepwiser.search.comparison import in_words, method_title

PLAIN, MAJORITY = 4, 5

LINES = {
    "chunk_reset": ("chunk-reset, majority of its searches", 0),
    "chunk_reset_weighted": ("chunk-reset, weighted vote of its searches", 1),
    "best_of_n": ("best of N", 2),
    "weighted_vote": ("weighted vote", 3),
    "beam_search": ("beam search", 6),
    "early_stop": ("early stop", 7),
}
"""Name and colour of each method's line, where they differ by judge from figure to figure."""

JOINED = {"chunk_reset_majority": "chunk_reset"}
"""A lone search is a vote of one."""


@dataclass(frozen=True)
class Point:
    """A method of one size with one judge."""

    method: str
    judge: str
    size: int
    row: dict[str, Any]

    @property
    def title(self) -> str:
        return method_title(self.method, self.size)

    @property
    def accuracy(self) -> Estimate | None:
        return accuracy_of(self.row)


def accuracy_of(row: Any) -> Estimate | None:
    return Estimate.normal(number(row, "accuracy"), number(row, "accuracy_se"))


def solving(data: RunData) -> Section:
    """Accuracy against total tokens (paper section 5.1) and against time."""
    metrics = data.metrics("solve")
    section = Section(
        "solving",
        "Solving with the judge",
        f"Search with the judge on {whole(number(metrics, 'problems'))} fresh problems, beside "
        "plain sampling and majority vote. Chunk-reset samples a chunk that the judge refuses "
        "again. Tokens are all tokens of a problem, those of refused chunks and of the judge "
        "included.",
        missing="" if metrics else "solve",
    )
    if not metrics:
        section.lead = ""
        return section
    points = list(_points(metrics))
    judges = list(dict.fromkeys(point.judge for point in points))
    by_judge = any(point.method != "chunk_reset" for point in points)
    groups = [[p for p in points if p.judge == name] for name in judges] if by_judge else [points]
    for group in groups or [[]]:
        where = f", {judge_title(group[0].judge)}" if by_judge else ""
        drawn = [
            _figure(metrics, points, group, field, where, by_judge)
            for field in ("total_tokens", "seconds")
        ]
        section.add(Figures([figure for figure in drawn if figure]))
        section.add(_table(metrics, group, where.removeprefix(", "), not by_judge))
    for name in judges:
        gains = [gain for p in points if p.judge == name and (gain := _gain(metrics, p))]
        for words in in_words(gains):
            section.add(Note(f"{judge_title(name)}. {words}"))
    return section


def _points(metrics: dict[str, Any]) -> Iterator[Point]:
    """Also of runs that were measured when there was nothing but chunk-reset."""
    for name, row in mapping(metrics, "search").items():
        if isinstance(row, dict):
            yield Point("chunk_reset", name, 1, row)
    for row in rows_of(metrics, "methods"):
        yield Point(
            str(row.get("method")),
            str(row.get("judge")),
            round(number(row, "size") or 0),
            row,
        )


def _over(metrics: dict[str, Any], point: Point, what: str) -> dict[str, Any]:
    """Gain over `plain`, or over the `majority` at its own cost; of an older run for the trained
    judge only."""
    row = mapping(point.row, f"over_{what}")
    if not row and point.method == "chunk_reset":
        row = mapping(metrics, "differences", f"{point.judge} - {what}")
    return row


def _gain(metrics: dict[str, Any], point: Point) -> tuple[str, float, float] | None:
    row = _over(metrics, point, "majority")
    mean, error = number(row, "mean"), number(row, "se")
    return None if mean is None or error is None else (point.title, mean, error)


# --- figures ---------------------------------------------------------------------------------


def _figure(
    metrics: dict[str, Any],
    points: Sequence[Point],
    group: Sequence[Point],
    field: str,
    where: str,
    by_judge: bool,
) -> Figure | None:
    """Accuracy against a field of the rows. All groups have the axes of all points."""
    plain = mapping(metrics, "plain")
    votes = [
        (x, estimate, number(row, "votes") or 0)
        for row in rows_of(metrics, "majority")
        if (x := number(row, field)) and (estimate := accuracy_of(row))
    ]
    placed = [(x, e) for p in points if (x := number(p.row, field)) and (e := p.accuracy)]
    placed += [(x, e) for x, e, _ in votes]
    single, at = accuracy_of(plain), number(plain, "tokens" if field != "seconds" else field)
    if single and at:
        placed.append((at, single))
    if not placed:
        return None
    plot = _plot(metrics, placed, field)
    legend = []
    if votes:
        _draw_votes(plot, votes, field)
        legend.append(Legend("majority vote (k at the points, 95% band)", MAJORITY))
    if single and at:
        tip = f"plain sampling: {single.mean:.3f} {single.interval} at {_amount(at, field)}"
        plot.marks([Mark(at, single.mean, single.low, single.high, tip, size=5.5)], PLAIN)
        legend.append(Legend("plain sampling", PLAIN))
    if by_judge:
        legend += _draw_methods(plot, group, field)
    else:
        legend += _draw_judges(plot, group, field)
    what = "seconds" if field == "seconds" else "total tokens"
    return Figure(
        f"Accuracy against {'seconds' if field == 'seconds' else 'tokens'}{where}",
        plot.svg(f"Accuracy against {what} of plain sampling, majority vote and search{where}"),
        legend,
        _seconds_note(metrics, points) if field == "seconds" else "95% intervals.",
        wide=True,
    )


def _plot(metrics: dict[str, Any], placed: Sequence[tuple[float, Estimate]], field: str) -> Plot:
    xs = [x for x, _ in placed]
    ys = [v for _, e in placed for v in (e.mean, e.low, e.high) if v is not None]
    log = max(xs) > 4 * min(xs)
    low, high = (min(xs) / 1.2, max(xs) * 1.15) if log else reach(xs)
    bottom, top = reach(ys)
    title = (
        f"seconds for all {whole(number(metrics, 'problems'))} problems"
        if field == "seconds"
        else "total tokens a problem"
    )
    return Plot(
        Axis(title + (" (log scale)" if log else ""), low, high, log=log),
        Axis("accuracy", max(0.0, bottom), min(1.0, top)),
        width=760,
        height=400,
    )


def _draw_votes(plot: Plot, votes: Sequence[tuple[float, Estimate, float]], field: str) -> None:
    # By tokens they come in order; by seconds more votes may have taken less.
    votes = sorted(votes, key=lambda vote: vote[0])
    plot.band(
        [(x, e.low, e.high) for x, e, _ in votes if e.low is not None and e.high is not None],
        MAJORITY,
    )
    plot.line([(x, e.mean) for x, e, _ in votes], MAJORITY)
    plot.marks(
        [
            Mark(
                x,
                e.mean,
                tip=f"majority of {k:.0f}: {e.mean:.3f} {e.interval} at {_amount(x, field)}",
                label=f"{k:.0f}",
                size=3.5,
            )
            for x, e, k in votes
        ],
        MAJORITY,
    )


def _draw_methods(plot: Plot, group: Sequence[Point], field: str) -> list[Legend]:
    """One line a method, its sizes at the points."""
    legend = []
    for name in dict.fromkeys(JOINED.get(p.method, p.method) for p in group):
        own = sorted(
            (p for p in group if JOINED.get(p.method, p.method) == name), key=lambda p: p.size
        )
        marks = [mark for p in own if (mark := _mark(p, field, p.title, 4.5, f"{p.size}"))]
        if not marks:
            continue
        title, colour = LINES.get(name, (name, 3))
        plot.line([(mark.x, mark.y) for mark in marks], colour)
        plot.marks(marks, colour)
        several = any(p.method != "chunk_reset" for p in own)
        legend.append(Legend(title if several else "chunk-reset", colour))
    return legend


def _draw_judges(plot: Plot, group: Sequence[Point], field: str) -> list[Legend]:
    """Chunk-reset alone, one mark a judge."""
    legend = []
    judges = [point.judge for point in group]
    for point in group:
        title = f"chunk-reset, {judge_title(point.judge)}"
        if mark := _mark(point, field, title, 6.5):
            colour = judge_colour(point.judge, judges)
            plot.marks([mark], colour)
            legend.append(Legend(title, colour))
    return legend


def _mark(point: Point, field: str, title: str, size: float, label: str = "") -> Mark | None:
    x, e = number(point.row, field), point.accuracy
    if not x or e is None:
        return None
    tip = f"{title}: {e.mean:.3f} {e.interval} at {_amount(x, field)}"
    return Mark(x, e.mean, e.low, e.high, tip, label, size)


def _amount(x: float, field: str) -> str:
    return f"{x:.1f} seconds" if field == "seconds" else f"{x:.0f} tokens"


def _seconds_note(metrics: dict[str, Any], points: Sequence[Point]) -> str:
    """How they came about: time is a matter of what runs beside, and on how much."""

    def held(row: Any, who: str) -> str:
        at_once, engines = number(row, "problems_at_once"), number(row, "engines")
        return f"{who}: {whole(at_once)} problems at once, engines: {whole(engines)}"

    words = [held(mapping(metrics, "plain"), "plain sampling and votes")]
    timed = [p.row for p in points if number(p.row, "seconds") is not None]
    if timed:
        words.append(held(timed[0], "with a judge"))
    return (
        "95% intervals. Wall clock of all problems, loading of models aside; "
        f"{'; '.join(words)}. Sizes that were not run by themselves have no seconds."
    )


# --- table -----------------------------------------------------------------------------------


def _table(metrics: dict[str, Any], group: Sequence[Point], title: str, name_judges: bool) -> Table:
    plain = mapping(metrics, "plain")
    tokens = decimal(number(plain, "tokens"), 0)
    seconds = decimal(number(plain, "seconds"), 1)
    rows: list[tuple[Any, ...]] = [
        ("plain sampling", accuracy_of(plain), tokens, "", "", tokens, seconds, "", "", "", "", "")
    ]
    for point in group:
        row = point.row
        vote = mapping(row, "majority_at_cost")
        rows.append(
            (
                point.title + (f", {judge_title(point.judge)}" if name_judges else ""),
                point.accuracy,
                *(
                    decimal(number(row, f"{part}_tokens"), 0)
                    for part in ("accepted", "rejected", "judge", "total")
                ),
                decimal(number(row, "seconds"), 1),
                decimal(number(row, "votes"), 1),
                decimal(number(row, "forced"), 2) if point.method == "chunk_reset" else "",
                _signed(_over(metrics, point, "plain")),
                accuracy_of(vote)
                and f"{_text(accuracy_of(vote))} of {whole(number(vote, 'votes'))}",
                _signed(_over(metrics, point, "majority")),
            )
        )
    columns = (
        *("method", "accuracy", "accepted tokens", "rejected", "judge", "total"),
        *("seconds", "answers that vote", "chunks forced", "gain over plain"),
        *("majority vote, same tokens", "gain over it"),
    )
    return Table(
        columns,
        rows,
        title,
        note="Mean over problems; gains are of the same problems, each interval is looked at by "
        "itself. Forced: chunks taken although the judge refused every sample.",
    )


def _text(estimate: Estimate | None) -> str:
    return f"{estimate.mean:.3f} {estimate.interval}" if estimate else ""


def _signed(row: dict[str, Any]) -> str | None:
    gain = Estimate.normal(number(row, "mean"), number(row, "se"), share=False)
    return f"{gain.mean:+.3f} {gain.signed_interval}" if gain else None
