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

TP, FP, TN, FN, SILENT_RIGHT, SILENT_WRONG, FAILED = range(7)
"""Places in a row of counts. Positive is a right step; silent is a judge that was asked about a
right or a wrong step and gave no verdict, failed a request that no judge has answered."""


def step_counts(
    items: Sequence[StepItem],
    judgements: Sequence[Judgement],
    truth: Mapping[tuple[str, int], bool] | None = None,
    *,
    majority: bool = False,
) -> np.ndarray:
    """Counts of every item and vote: [items, votes, 7], or one vote, the majority's verdict.

    Args:
        truth: whether a step is right, by item and step; steps that it lacks are not counted. Else
            ``StepItem.wrong_steps``.

    Raises UserError for an item without labels of every step.
    """
    by_item = group_by(judgements, "item_id")
    votes = 1 if majority else max((len(row.votes) for row in judgements), default=1)
    counts = np.zeros((len(items), votes, FAILED + 1))
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
            for vote, place in enumerate(_places(row, right, majority)):
                counts[i, vote, place] += 1
    return counts


def prm_score(counts: np.ndarray) -> np.ndarray:
    """0.5 F1 + 0.5 F1neg of counts [..., 7], over steps with a verdict: [...]; nan where one class
    has none."""
    return 0.5 * f1(counts) + 0.5 * f1_negative(counts)


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """The same over all steps that a judge was asked about: one without a verdict is a miss of its
    class, so that no judge gains by silence. [...]; nan where one class has no step."""
    right = _ratio(counts[..., TP], counts[..., FP], counts[..., FN] + counts[..., SILENT_RIGHT])
    wrong = _ratio(counts[..., TN], counts[..., FN], counts[..., FP] + counts[..., SILENT_WRONG])
    return 0.5 * right + 0.5 * wrong


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
                "prm_score": mean_or_none(score),
                "solutions": sum(mine),
                "right_steps": mean_or_none(part[:, TP] + part[:, FN]),
                "wrong_steps": mean_or_none(part[:, TN] + part[:, FP]),
            }
    dimensions = {
        name: [categories[kind]["prm_score"] for kind in kinds if kind in categories]
        for name, kinds in DIMENSIONS.items()
    }
    asked = whole.sum()
    return {
        "solutions": len(items),
        "prm_score": mean_or_none(prm_score(whole)),
        "f1": mean_or_none(f1(whole)),
        "f1_negative": mean_or_none(f1_negative(whole)),
        "majority": mean_or_none(prm_score(step_counts(items, judgements, majority=True).sum(0))),
        "categories": categories,
        "dimensions": {
            name: sum(values) / len(values) if values and None not in values else None
            for name, values in dimensions.items()
        },
        "missing_share": float(whole[:, SILENT_RIGHT:].sum() / asked) if asked else 0.0,
    }


def _ratio(hits: np.ndarray, wrongly: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """F1 from hits and the two kinds of misses; nan where nothing was to be hit."""
    total = 2 * hits + wrongly + lost
    value = np.divide(2 * hits, total, out=np.zeros_like(total, dtype=float), where=total > 0)
    return np.where(hits + lost > 0, value, np.nan)


def mean_or_none(values: np.ndarray) -> float | None:
    """Of a figure of each vote; None where one of them is undefined (nan)."""
    return None if np.isnan(values).any() else float(values.mean())


def _places(row: Judgement, right: bool, majority: bool) -> list[int]:
    """Where each vote counts. Which of the votes without a verdict have failed is not known, only
    how many; a majority has failed with all of its votes."""
    silent = SILENT_RIGHT if right else SILENT_WRONG
    named = {1: TP if right else FP, 0: FN if right else TN}
    if majority:
        lost = FAILED if row.failed == len(row.votes) else silent
        return [lost if row.verdict is None else named[int(row.verdict)]]
    failed, places = row.failed, []
    for code in row.votes:
        if code == -1:
            places.append(FAILED if failed > 0 else silent)
            failed -= 1
        else:
            places.append(named[code])
    return places
