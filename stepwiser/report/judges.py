"""Sections that score the judges: ProcessBench, positions, calibration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stepwiser.annotation.statistics import Z95
from stepwiser.report.blocks import (
    ABSENT,
    Estimate,
    Note,
    Section,
    Table,
    brief,
    decimal,
    judge_colour,
    judge_title,
    percent,
    whole,
)
from stepwiser.report.drawing.charts import Axis, Mark, Plot
from stepwiser.report.drawing.figures import BarGroups, Bars, Figure, Figures, Interval, Legend
from stepwiser.report.reading import RunData, mapping, number, pick, rows_of

PROTOCOLS = (
    ("official", "official: by label"),
    ("by_final_answer", "by final answer (paper)"),
)


def f1(row: dict[str, Any], protocol: str) -> Estimate | None:
    """F1 of one judgement a step, by one protocol."""
    scores = mapping(row, "single", protocol)
    return Estimate.normal(number(scores, "f1"), number(scores, "f1_standard_error"))


def majority_f1(row: dict[str, Any], protocol: str) -> Estimate | None:
    """F1 of the majority of k judgements; None where there is one judgement only."""
    if (number(row, "votes") or 1) < 2:
        return None
    scores = mapping(row, "majority", protocol)
    return Estimate.normal(number(scores, "f1"), number(scores, "f1_standard_error"))


def processbench(data: RunData) -> Section:
    """Both ProcessBench protocols for every judge (paper section 4)."""
    metrics = data.metrics("evaluate")
    judges = mapping(metrics, "judges")
    wrong, right = (number(metrics, "items", side) for side in ("wrong", "right"))
    section = Section(
        "processbench",
        "Finding the first wrong step",
        f"ProcessBench format, set “{metrics.get('set', ABSENT)}”: {whole(wrong)} solutions with a "
        f"wrong step, {whole(right)} without. F1 is the harmonic mean of the shares of hits among "
        "erroneous and among correct solutions.",
        missing="" if judges else "evaluate",
    )
    if not judges:
        section.lead = ""
        return section
    votes = sorted({int(v) for row in judges.values() if (v := number(row, "votes"))})
    k = votes[0] if len(votes) == 1 else "k"
    groups = []
    for protocol, title in PROTOCOLS:
        for kind, of in (("one judgement", f1), (f"Maj@{k}", majority_f1)):
            rows = [
                Interval(judge_title(name), judge_colour(name, list(judges)), estimate)
                for name, row in judges.items()
                if (estimate := of(row, protocol))
            ]
            if rows:
                groups.append(Bars(f"F1, {title}, {kind}", rows))
    section.add(
        BarGroups(groups),
        *(_score_table(judges, protocol, title, k) for protocol, title in PROTOCOLS),
        _answer_table(judges),
        Note(
            "Brackets: 95% intervals. F1 is that of one judgement a step, the mean over the votes; "
            "its interval is that of one evaluation. Official: an item is erroneous if a step is "
            "wrong; by final answer: if its final answer is. The two are not comparable."
        ),
    )
    section.add(Figures([f for f in (_positions(judges), _recall(judges)) if f]))
    prefix = pick(data.config, "evaluate", "forced_prefix")
    if "start, forced" in judges and prefix:
        section.add(
            Note(
                f"“{judge_title('start, forced')}”: its answers are made to begin with “{prefix}”."
            )
        )
    return section


def _score_table(judges: dict[str, Any], protocol: str, title: str, k: int | str) -> Table:
    rows: list[tuple[Any, ...]] = []
    for name, row in judges.items():
        single = mapping(row, "single", protocol)
        rows.append(
            (
                judge_title(name),
                f1(row, protocol),
                decimal(number(single, "error_accuracy")),
                decimal(number(single, "correct_accuracy")),
                majority_f1(row, protocol),
                f"{whole(number(single, 'n_error'))} / {whole(number(single, 'n_correct'))}",
            )
        )
    return Table(
        (
            "judge",
            "F1",
            "erroneous",
            "correct",
            f"F1 of Maj@{k}",
            "erroneous / correct items",
        ),
        rows,
        title=title[0].upper() + title[1:],
    )


def _answer_table(judges: dict[str, Any]) -> Table:
    """How the judges answer, whatever the protocol."""
    rows = []
    for name, row in judges.items():
        recall = mapping(row, "recall")
        rows.append(
            (
                judge_title(name),
                _pair(recall.get("positive")),
                _pair(recall.get("negative")),
                percent(number(row, "missing_share")),
                decimal(number(row, "tokens_per_judgement"), 1),
            )
        )
    columns = (
        "judge",
        "right steps accepted",
        "wrong steps refused",
        "no verdict",
        "tokens a judgement",
    )
    return Table(columns, rows, title="Steps up to the first wrong one, and answers")


def _pair(value: Any) -> Estimate | None:
    """A (mean, standard error) pair as it comes out of JSON."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    mean, error = ({"value": v} for v in value)
    return Estimate.normal(number(mean, "value"), number(error, "value"))


def _positions(judges: dict[str, Any]) -> Figure | None:
    table = {name: rows_of(row, "positions") for name, row in judges.items()}
    table = {name: rows for name, rows in table.items() if rows}
    last = max((number(r, "position") or 0 for rows in table.values() for r in rows), default=0)
    if not table or last < 1:
        return None
    plot = Plot(
        Axis("step of the solution", 0.4, last + 1.6),
        Axis("verdict accuracy", 0, 1),
    )
    for i, (name, rows) in enumerate(table.items()):
        shift = 0.12 * (
            i - (len(table) - 1) / 2
        )  # side by side, or their intervals cover each other
        marks = []
        for row in rows:
            estimate = Estimate.share(number(row, "accuracy"), number(row, "count"))
            position = number(row, "position")
            if estimate is None or position is None:
                continue
            tip = (
                f"{judge_title(name)}, step {position + 1:.0f}: {estimate.mean:.3f} "
                f"{estimate.interval}, {whole(number(row, 'count'))} steps"
            )
            marks.append(
                Mark(position + 1 + shift, estimate.mean, estimate.low, estimate.high, tip)
            )
        colour = judge_colour(name, list(judges))
        plot.line([(mark.x, mark.y) for mark in marks], colour)
        plot.marks(marks, colour)
    return Figure(
        "Accuracy by step",
        plot.svg("Verdict accuracy at each step of a solution, for every judge"),
        _legend(table, judges),
        "Majority verdict, steps up to the first wrong one; 95% Wilson intervals.",
    )


def _recall(judges: dict[str, Any]) -> Figure | None:
    """Accuracy on right against accuracy on wrong steps: a judge that always agrees is visible."""
    plot = Plot(Axis("accuracy on wrong steps", 0, 1), Axis("accuracy on right steps", 0, 1))
    plot.line([(0, 1), (1, 0)], 3, "guide")
    shown = {}
    for name, row in judges.items():
        wrong, right = (_pair(mapping(row, "recall").get(key)) for key in ("negative", "positive"))
        if wrong is None or right is None:
            continue
        shown[name] = row
        tip = f"{judge_title(name)}: wrong steps {wrong.mean:.3f}, right steps {right.mean:.3f}"
        mark = Mark(wrong.mean, right.mean, right.low, right.high, tip, size=5.5)
        plot.marks([mark], judge_colour(name, list(judges)))
    if not shown:
        return None
    return Figure(
        "Both classes",
        plot.svg("Accuracy on right steps against accuracy on wrong steps, for every judge"),
        _legend(shown, judges),
        "On the dashed line lies whoever answers without looking.",
    )


def benchmarks(data: RunData) -> Section | None:
    """Every judge on every set with what it cost, and PRMBench by kinds of mistake."""
    metrics = data.metrics("evaluate")
    scores = rows_of(metrics, "benchmarks")
    if not scores:
        return None
    section = Section(
        "benchmarks",
        "Judges and benchmarks",
        "One figure a pair, with what asking has cost: tokens read and written, and seconds, "
        "without loading.",
    )
    section.add(_benchmark_table(scores), *_prmbench_tables(mapping(metrics, "judges")))
    chosen = {
        name: row
        for name, row in mapping(metrics, "judges").items()
        if number(row, "threshold", "value") is not None
    }
    for name, row in chosen.items():
        section.add(
            Note(
                f"“{judge_title(name)}”: Positive from {decimal(number(row, 'threshold', 'value'))}"
                f" on, chosen on {whole(number(row, 'threshold', 'items'))} solutions to other "
                "problems than these."
            )
        )
    section.add(
        Note(
            "Brackets: 95% intervals, resampling problems. Of several votes “one judgement” is "
            "their mean. The same table is in reports/benchmarks.csv and benchmarks.tex."
        )
    )
    return section


def _benchmark_table(scores: list[dict[str, Any]]) -> Table:
    priced = any(number(row, "price") for row in scores)
    order = list(dict.fromkeys(str(row.get("benchmark")) for row in scores))
    rows = []
    for row in sorted(scores, key=lambda row: order.index(str(row.get("benchmark")))):
        solutions = number(row, "solutions") or 0
        tokens, seconds = (
            None if not solutions or None in parts else sum(filter(None, parts)) / solutions
            for parts in (
                [number(row, key) for key in ("generated_tokens", "prompt_tokens")],
                [number(row, "seconds")],
            )
        )
        cells: list[str | Estimate | None] = [
            str(row.get("benchmark")),
            judge_title(str(row.get("judge"))),
            str(row.get("metric")),
            _bounded(row, "value", "low", "high"),
            _bounded(row, "majority", "majority_low", "majority_high"),
            percent(number(row, "no_verdict")),
            whole(number(row, "failed")),
            whole(tokens),
            decimal(seconds, 2),
        ]
        rows.append([*cells, *([brief(number(row, "price") or None)] if priced else [])])
    columns = (
        "benchmark", "judge", "figure", "one judgement", "majority", "no verdict",
        "failed requests", "tokens a solution", "seconds a solution",
    )  # fmt: skip
    return Table((*columns, *(["price"] if priced else [])), rows)


def _bounded(row: dict[str, Any], mean: str, low: str, high: str) -> Estimate | None:
    value = number(row, mean)
    return None if value is None else Estimate(value, number(row, low), number(row, high))


def _prmbench_tables(judges: dict[str, Any]) -> Iterator[Table]:
    """PRMScore by kind of mistake, one table a set."""
    sets = {name for row in judges.values() for name in mapping(row, "prmbench")}
    for name in sorted(sets):
        found = {judge: mapping(row, "prmbench", name) for judge, row in judges.items()}
        found = {judge: row for judge, row in found.items() if row}
        kinds = list(dict.fromkeys(k for row in found.values() for k in mapping(row, "categories")))
        rows = [
            (
                judge_title(judge),
                decimal(number(row, "prm_score")),
                decimal(number(row, "f1")),
                decimal(number(row, "f1_negative")),
                *(decimal(number(row, "categories", kind, "prm_score")) for kind in kinds),
            )
            for judge, row in found.items()
        ]
        columns = ("judge", "PRMScore", "F1", "F1 neg", *(kind.replace("_", " ") for kind in kinds))
        yield Table(columns, rows, title=f"{name}: PRMScore by kind of mistake")


def calibration(data: RunData) -> Section:
    """Reliability of the judges' scores, against labels and against Monte-Carlo values."""
    judges = mapping(data.metrics("evaluate"), "judges")
    section = Section(
        "calibration",
        "Calibration",
        "Does a score mean what it says? On the diagonal it does.",
        missing="" if judges else "evaluate",
    )
    sources = (
        ("calibration", "Against labels", "share of right steps"),
        ("calibration_values", "Against Monte-Carlo values", "mean value"),
    )
    section.add(Figures([f for s in sources if (f := _reliability(judges, *s))]))
    rows = []
    for name, row in judges.items():
        cells = [judge_title(name)]
        for key, _, _ in sources:
            cells += [
                decimal(number(row, key, "ece")),
                decimal(number(row, key, "brier")),
                whole(number(row, key, "count")),
            ]
        if any(cell != ABSENT for cell in cells[1:]):
            rows.append(cells)
    section.add(
        Table(
            (
                "judge",
                "ECE, labels",
                "Brier, labels",
                "steps",
                "ECE, values",
                "Brier, values",
                "chunks",
            ),
            rows,
            note="ECE and Brier score: lower is better.",
        )
    )
    if judges and not section.blocks:
        section.add(Note("No judge gave a score."))
    return section


def _reliability(judges: dict[str, Any], key: str, title: str, y: str) -> Figure | None:
    table = {name: rows for name, row in judges.items() if (rows := rows_of(row, key, "table"))}
    if not table:
        return None
    plot = Plot(Axis("score of the judge", 0, 1), Axis(y, 0, 1), height=280)
    plot.line([(0, 0), (1, 1)], 3, "guide")
    most = max((number(r, "count") or 0 for rows in table.values() for r in rows), default=0) or 1
    for name, rows in table.items():
        marks = []
        for row in rows:
            score, outcome = number(row, "mean_score"), number(row, "mean_outcome")
            if score is None or outcome is None:
                continue
            error, count = number(row, "outcome_standard_error"), number(row, "count") or 0
            low = max(0.0, outcome - Z95 * error) if error else None
            high = min(1.0, outcome + Z95 * error) if error else None
            tip = f"{judge_title(name)}: score {score:.3f}, {y} {outcome:.3f}, {count:.0f} scores"
            marks.append(Mark(score, outcome, low, high, tip, size=2.5 + 5 * (count / most) ** 0.5))
        colour = judge_colour(name, list(judges))
        plot.line([(mark.x, mark.y) for mark in marks], colour)
        plot.marks(marks, colour)
    return Figure(
        title,
        plot.svg(f"Reliability diagram: {y} against the judge's score"),
        _legend(table, judges),
        "The larger the mark, the more scores lie in its bin; 95% intervals.",
    )


def _legend(shown: dict[str, Any], judges: dict[str, Any]) -> list[Legend]:
    return [Legend(judge_title(name), judge_colour(name, list(judges))) for name in shown]
