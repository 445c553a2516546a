"""Scores of single steps, right and wrong ones alike: PRMBench's, and those of own labels.

PRMBench (arXiv 2501.03124) counts every step of a solution, also those after a mistake, and
combines the F1 of accepting right steps with the F1 of refusing wrong ones:
PRMScore = 0.5 F1 + 0.5 F1neg. It is micro-averaged over all solutions; its kinds of mistake have
one each, save `multi_solutions`, whose steps are all right and which has F1 alone. A dimension is
the mean of its kinds. An F1 of which nothing was hit is 0 here, -1 in the published script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepwiser.data.records import Judgement, StepItem, group_by
from stepwiser.errors import UserError

DIMENSIONS = {
    "simplicity": ("redundency", "circular"),
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
"""PRMBench's kinds of mistake, in its own spelling."""
ALL_RIGHT = "multi_solutions"

TP, FP, TN, FN, MISSING = range(5)
"""Places in a row of counts. Positive is a right step; a step without a verdict is only missing."""


def step_counts(
    items: Sequence[StepItem],
    judgements: Sequence[Judgement],
    truth: Mapping[tuple[str, int], bool] | None = None,
    *,
    majority: bool = False,
) -> np.ndarray:
    """Counts of every item and vote: [items, votes, 5], or one vote, the majority's verdict.

    Args:
        truth: whether a step is right, by item and step; steps that it lacks are not counted. Else
            ``StepItem.wrong_steps``.

    Raises UserError for an item without labels of every step.
    """
    by_item = group_by(judgements, "item_id")
    votes = 1 if majority else max((len(row.votes) for row in judgements), default=1)
    counts = np.zeros((len(items), votes, 5))
    for i, item in enumerate(items):
        for row in by_item.get(item.id, []):
            if truth is not None:
                right = truth.get((item.id, row.step_index))
                if right is None:
                    continue
            elif item.wrong_steps is None:
                raise UserError(f"item {item.id} has no label of every step: its steps have none")
            else:
                right = row.step_index not in item.wrong_steps
            codes = [_code(row.verdict)] if majority else row.votes
            for vote, code in enumerate(codes):
                counts[i, vote, _place(code, right)] += 1
    return counts


def prm_score(counts: np.ndarray) -> np.ndarray:
    """0.5 F1 + 0.5 F1neg of counts [..., 5]: [...]; nan where one class has no step."""
    return 0.5 * f1(counts) + 0.5 * f1_negative(counts)


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 of accepting right steps: [...]; nan without a right step."""
    return _ratio(counts[..., TP], counts[..., FP], counts[..., FN])


def f1_negative(counts: np.ndarray) -> np.ndarray:
    """F1 of refusing wrong steps: [...]; nan without a wrong step."""
    return _ratio(counts[..., TN], counts[..., FN], counts[..., FP])


def score_prmbench(items: Sequence[StepItem], judgements: Sequence[Judgement]) -> dict[str, Any]:
    """PRMBench's figures of one judge; every vote is an evaluation, and figures are their mean.

    ``prm_score``, ``f1``, ``f1_negative``, ``majority`` (PRMScore of the majority's verdicts),
    ``categories`` and ``dimensions`` (None where the set has no solution of it), ``missing_share``.
    """
    counts = step_counts(items, judgements)
    whole = counts.sum(0)
    categories: dict[str, dict[str, Any]] = {}
    for name in [kind for kinds in DIMENSIONS.values() for kind in kinds]:
        mine = [item.category == name for item in items]
        if any(mine):
            part = counts[mine].sum(0)
            score = f1(part) if name == ALL_RIGHT else prm_score(part)
            categories[name] = {
                "prm_score": _mean(score),
                "solutions": sum(mine),
                "right_steps": _mean(part[:, TP] + part[:, FN]),
                "wrong_steps": _mean(part[:, TN] + part[:, FP]),
            }
    dimensions = {
        name: [categories[kind]["prm_score"] for kind in kinds if kind in categories]
        for name, kinds in DIMENSIONS.items()
    }
    asked = whole.sum()
    return {
        "solutions": len(items),
        "prm_score": _mean(prm_score(whole)),
        "f1": _mean(f1(whole)),
        "f1_negative": _mean(f1_negative(whole)),
        "majority": _mean(prm_score(step_counts(items, judgements, majority=True).sum(0))),
        "categories": categories,
        "dimensions": {
            name: sum(values) / len(values) if values and None not in values else None
            for name, values in dimensions.items()
        },
        "missing_share": float(whole[:, MISSING].sum() / asked) if asked else 0.0,
    }


def _ratio(hits: np.ndarray, wrongly: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """F1 from hits and the two kinds of misses; nan where nothing was to be hit."""
    total = 2 * hits + wrongly + lost
    value = np.divide(2 * hits, total, out=np.zeros_like(total, dtype=float), where=total > 0)
    return np.where(hits + lost > 0, value, np.nan)


def _mean(values: np.ndarray) -> float | None:
    return None if np.isnan(values).any() else float(values.mean())


def _code(verdict: bool | None) -> int:
    return -1 if verdict is None else int(verdict)


def _place(code: int, right: bool) -> int:
    if code == -1:
        return MISSING
    return (TP if right else FP) if code == 1 else (FN if right else TN)
