"""Scoring a judge: both ProcessBench protocols, votes, positions, calibration (paper section 4)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from stepwiser.annotation.statistics import mean_and_error
from stepwiser.data.records import Judgement, StepItem
from stepwiser.evaluation.calibration import (
    accuracy_by_position,
    brier_score,
    expected_calibration_error,
    reliability_table,
)
from stepwiser.evaluation.processbench import (
    first_negative,
    missing_verdicts,
    score_by_final_answer,
    score_official,
)
from stepwiser.judging.judges import Judge, JudgeVerdict


async def judge_items(
    judge: Judge, name: str, items: Sequence[StepItem], done: Callable[[], None] = lambda: None
) -> list[Judgement]:
    """Judge every step of every item; steps after a Negative too, positions need them."""

    async def one(item: StepItem) -> list[Judgement]:
        verdicts = await judge.judge_steps(item.problem, item.steps)
        done()
        return [judgement(item.id, name, i, verdict) for i, verdict in enumerate(verdicts)]

    return [row for rows in await asyncio.gather(*(one(item) for item in items)) for row in rows]


def judgement(item_id: str, name: str, index: int, verdict: JudgeVerdict) -> Judgement:
    """A verdict as a row."""
    return Judgement(
        item_id=item_id,
        judge=name,
        step_index=index,
        votes=[-1 if vote is None else int(vote) for vote in verdict.votes],
        verdict=verdict.verdict,
        score=verdict.score,
        analysis=verdict.analysis,
        tokens=verdict.tokens,
        truncated=verdict.truncated,
        prompt_tokens=verdict.prompt_tokens,
        failed=verdict.failed,
    )


def score_judge(
    items: Sequence[StepItem], judgements: Sequence[Judgement], bins: int
) -> dict[str, Any]:
    """Everything that is reported about one judge on one set.

    `single`: one judgment a step; every vote is a full evaluation of its own and the figures are
    their mean, the standard error that of one evaluation (items are the independent units).
    `majority`: Maj@k over the k votes.

    Raises ValueError for two items of one id: their judgements could not be told apart.
    """
    twice = [name for name, n in Counter(item.id for item in items).items() if n > 1]
    if twice:
        raise ValueError(f"{len(twice)} ids are those of several items, {twice[0]!r} among them")
    by_item: dict[str, list[Judgement]] = {}
    for row in judgements:
        by_item.setdefault(row.item_id, []).append(row)
    steps = [sorted(by_item[item.id], key=lambda row: row.step_index) for item in items]
    labels = [item.label for item in items]
    right = [item.final_answer_correct for item in items]
    votes = len(judgements[0].votes)

    def verdicts_of(vote: int) -> list[list[bool | None]]:
        return [[_vote(row.votes[vote]) for row in rows] for rows in steps]

    def scores(verdicts: Sequence[Sequence[bool | None]]) -> dict[str, Any]:
        predictions = [first_negative(v) for v in verdicts]
        return {
            "official": asdict(score_official(predictions, labels)),
            "by_final_answer": asdict(score_by_final_answer(predictions, labels, right)),
            "missing_verdicts": sum(missing_verdicts(v) for v in verdicts),
        }

    single = [scores(verdicts_of(vote)) for vote in range(votes)]
    result = {
        "votes": votes,
        "items": len(items),
        "single": {
            protocol: _mean_score([row[protocol] for row in single])
            for protocol in ("official", "by_final_answer")
        },
        "majority": scores([[row.verdict for row in rows] for rows in steps]),
        "missing_share": sum(v == -1 for row in judgements for v in row.votes)
        / max(1, sum(len(row.votes) for row in judgements)),
        "tokens_per_judgement": sum(row.tokens for row in judgements)
        / max(1, sum(len(row.votes) for row in judgements)),
    }
    result |= _steps_up_to_error(items, steps, bins)
    return result


def _vote(code: int) -> bool | None:
    return None if code == -1 else bool(code)


def _mean_score(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean over votes; counts stay as they are."""
    result: dict[str, Any] = {"n_error": rows[0]["n_error"], "n_correct": rows[0]["n_correct"]}
    for key in ("error_accuracy", "correct_accuracy", "f1", "f1_standard_error"):
        values = [row[key] for row in rows if row[key] is not None]
        result[key] = mean_and_error(values)[0] if values else None
    empty = [name for name in ("error", "correct") if not result[f"n_{name}"]]
    if empty:
        result["undefined_because"] = f"no {' and no '.join(empty)} items"
    return result


def _steps_up_to_error(
    items: Sequence[StepItem], steps: Sequence[Sequence[Judgement]], bins: int
) -> dict[str, Any]:
    """Positions and calibration on the steps whose label is known: up to the first error."""
    verdicts: list[bool | None] = []
    truth: list[bool] = []
    positions: list[int] = []
    scores: list[float] = []
    outcomes: list[float] = []
    for item, rows in zip(items, steps, strict=True):
        last = len(rows) - 1 if item.label == -1 else item.label
        for row in rows[: last + 1]:
            label = row.step_index != item.label
            verdicts.append(row.verdict)
            truth.append(label)
            positions.append(row.step_index)
            if row.score is not None:
                scores.append(row.score)
                outcomes.append(float(label))
    hits = {
        name: [v is label for v, t in zip(verdicts, truth, strict=True) if t is label]
        for name, label in (("positive", True), ("negative", False))
    }
    return {
        "positions": [asdict(row) for row in accuracy_by_position(verdicts, truth, positions)],
        "recall": {
            name: mean_and_error([float(h) for h in values]) for name, values in hits.items()
        },
        "calibration": calibration(scores, outcomes, bins),
    }


def calibration(
    scores: Sequence[float], outcomes: Sequence[float], bins: int
) -> dict[str, Any] | None:
    """Reliability table, ECE and Brier score; None where nothing was scored."""
    if not scores:
        return None
    return {
        "table": [asdict(row) for row in reliability_table(scores, outcomes, bins)],
        "ece": expected_calibration_error(scores, outcomes, bins),
        "brier": brier_score(scores, outcomes),
        "count": len(scores),
    }
