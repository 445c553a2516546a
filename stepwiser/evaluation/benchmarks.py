"""Judges against benchmarks: one figure with its interval, and what it cost, for every pair.

| set | figure |
|---|---|
| first wrong steps (ProcessBench, PRM800K, Math-Shepherd ...) | official F1 of ProcessBench |
| PRMBench | PRMScore |
| own held-out chunks with Monte-Carlo labels | macro F1 over the labelled chunks |

PRMScore is taken over steps with a verdict, as published; macro F1 over all, where a chunk without
one is a miss of its class.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from stepwiser.data.records import Judgement, StepItem, group_by
from stepwiser.evaluation.bootstrap import Bootstrapped, bootstrap
from stepwiser.evaluation.processbench import first_negative
from stepwiser.evaluation.step_scores import (
    macro_f1,
    mean_or_none,
    prm_score,
    step_counts,
)

F1 = "F1, first wrong step"
PRM_SCORE = "PRMScore"
MACRO_F1 = "macro F1, labelled chunks"


@dataclass(frozen=True)
class Cost:
    """What asking a judge about a set has cost, whenever that was."""

    seconds: float
    """From the first question to the last answer; nothing for loading."""
    generated_tokens: int
    prompt_tokens: int
    price: float = 0.0
    """In the money that evaluate.judges names prices in."""


@dataclass(frozen=True)
class BenchmarkScore:
    """One judge on one set. Fractions 0..1; None where a figure is undefined."""

    judge: str
    benchmark: str
    metric: str
    value: float | None
    """Of one judgement a step, the mean over votes."""
    low: float | None
    """95% interval, resampling problems."""
    high: float | None
    majority: float | None
    """Of the majority of votes; None for a judge of one vote."""
    majority_low: float | None
    majority_high: float | None
    votes: int
    problems: int
    solutions: int
    answered: float | None
    """The figure of PRMBench or of own chunks over steps with a verdict alone; None elsewhere."""
    no_verdict: float
    """Share of votes without a verdict."""
    failed: int
    """Votes among them that could not be asked for."""
    seconds: float
    generated_tokens: int
    prompt_tokens: int
    price: float


def benchmark_score(
    judge: str,
    benchmark: str,
    items: Sequence[StepItem],
    judgements: Sequence[Judgement],
    cost: Cost,
    truth: Mapping[tuple[str, int], bool] | None = None,
) -> BenchmarkScore:
    """The figure that the set has; ``truth`` labels single steps, by item and step."""
    problems = [item.problem for item in items]
    votes = max((len(row.votes) for row in judgements), default=1)
    if truth is not None:
        metric, score = MACRO_F1, macro_f1
    elif any(item.category for item in items):
        metric, score = PRM_SCORE, prm_score
    else:
        metric, score = F1, _harmonic

    def count(majority: bool) -> np.ndarray:
        if metric == F1:
            return _first_error_counts(items, judgements, majority=majority)
        return step_counts(items, judgements, truth, majority=majority)

    counts = count(majority=False)
    single, most = bootstrap(counts, problems, score), Bootstrapped(None, None, None, 0)
    if votes > 1:
        most = bootstrap(count(majority=True), problems, score)
    answered = None if metric == F1 else mean_or_none(prm_score(counts.sum(0)))
    codes = [code for row in judgements for code in row.votes]
    return BenchmarkScore(
        judge=judge,
        benchmark=benchmark,
        metric=metric,
        value=single.value,
        low=single.low,
        high=single.high,
        majority=most.value,
        majority_low=most.low,
        majority_high=most.high,
        votes=votes,
        problems=single.problems,
        solutions=len(items),
        answered=answered,
        no_verdict=codes.count(-1) / max(1, len(codes)),
        failed=sum(row.failed for row in judgements),
        seconds=cost.seconds,
        generated_tokens=cost.generated_tokens,
        prompt_tokens=cost.prompt_tokens,
        price=cost.price,
    )


def _first_error_counts(
    items: Sequence[StepItem], judgements: Sequence[Judgement], *, majority: bool
) -> np.ndarray:
    """Hits and number of erroneous and of correct items: [items, votes, 4]."""
    by_item = group_by(judgements, "item_id")
    rows = []
    for item in items:
        steps = sorted(by_item[item.id], key=lambda row: row.step_index)
        if majority:
            verdicts = [[row.verdict for row in steps]]
        else:
            codes = zip(*(row.votes for row in steps), strict=True)
            verdicts = [[None if c == -1 else bool(c) for c in vote] for vote in codes]
        hits = [float(first_negative(vote) == item.label) for vote in verdicts]
        wrong = item.label != -1
        rows.append([[h, 1.0, 0.0, 0.0] if wrong else [0.0, 0.0, h, 1.0] for h in hits])
    return np.array(rows).reshape(len(items), -1, 4)


def _harmonic(counts: np.ndarray) -> np.ndarray:
    """F1 of [..., 4]; nan without an erroneous or without a correct item."""
    sizes = np.where(counts[..., 1::2] > 0, counts[..., 1::2], np.nan)
    a, b = np.moveaxis(counts[..., ::2] / sizes, -1, 0)
    total = a + b
    return np.where(total == 0, 0.0, 2 * a * b / np.where(total == 0, 1.0, total))


# --- the table as files ---------------------------------------------------------------------------


def to_csv(scores: Sequence[BenchmarkScore]) -> str:
    """Every pair a row, with all that is known of it; empty cells where it is undefined."""
    text = io.StringIO()
    columns = [field.name for field in fields(BenchmarkScore)]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(score) for score in scores)
    return text.getvalue()


def to_latex(scores: Sequence[BenchmarkScore]) -> str:
    r"""Judges by benchmarks in per cent with intervals; the document needs `booktabs`.

    Of several votes the figure is that of one judgement a step; tokens are those of a solution.
    """
    judges = list(dict.fromkeys(score.judge for score in scores))
    columns = list(dict.fromkeys((score.benchmark, score.metric) for score in scores))
    pairs = {(score.judge, score.benchmark, score.metric): score for score in scores}
    lines = [
        rf"\begin{{tabular}}{{l{'c' * len(columns)}rr}}",
        r"\toprule",
        " & ".join(["judge", *(_tex(name) for name, _ in columns), "tokens", "seconds"]) + r" \\",
        " & ".join(["", *(_tex(metric) for _, metric in columns), "a solution", "a solution"])
        + r" \\",
        r"\midrule",
    ]
    for judge in judges:
        mine = [score for score in scores if score.judge == judge]
        solutions = max(1, sum(score.solutions for score in mine))
        tokens = sum(score.generated_tokens + score.prompt_tokens for score in mine) / solutions
        seconds = sum(score.seconds for score in mine) / solutions
        cells = [_tex_cell(pairs.get((judge, *column))) for column in columns]
        lines.append(" & ".join([_tex(judge), *cells, f"{tokens:.0f}", f"{seconds:.2f}"]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex_cell(score: BenchmarkScore | None) -> str:
    if score is None or score.value is None:
        return "--"
    if score.low is None or score.high is None:
        return f"{100 * score.value:.1f}"
    return f"{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _tex(text: str) -> str:
    for character in "\\{}":
        text = text.replace(character, "")
    for character in "&%$#_":
        text = text.replace(character, "\\" + character)
    return text.replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")
