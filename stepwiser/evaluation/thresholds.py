"""Where a score becomes a verdict: a threshold, chosen on one set and reported on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stepwiser.data.records import Judgement, StepItem, group_by
from stepwiser.errors import UserError


@dataclass(frozen=True)
class ChosenThreshold:
    """The threshold of one judge, and what it was chosen by."""

    value: float
    """Positive is what scores at least this."""
    f1: float
    """Official F1 on the set it was chosen on, which no table reports as a result."""
    items: int


def choose_threshold(
    items: Sequence[StepItem], judgements: Sequence[Judgement], name: str
) -> ChosenThreshold:
    """The threshold with the highest official F1; of equally good ones that nearest to 0.5.

    It lies in the middle between two scores. ``name``: of the set, for the error.

    Raises UserError where the set has no wrong or no right solution, so that F1 says nothing.
    """
    by_item = group_by(judgements, "item_id")
    # A solution is hit by the thresholds of one interval: above `low`, up to `high`.
    wrong: list[tuple[float, float]] = []
    right: list[tuple[float, float]] = []
    for item in items:
        rows = sorted(by_item[item.id], key=lambda row: row.step_index)
        # No score is no verdict, and no verdict finds no mistake, whatever the threshold.
        scores = [np.inf if row.score is None else row.score for row in rows]
        if item.label == -1:
            right.append((-np.inf, min(scores)))
        else:
            wrong.append((scores[item.label], min(scores[: item.label], default=np.inf)))
    if not wrong or not right:
        raise UserError(
            f"evaluate.threshold_set {name} has {len(wrong)} wrong and {len(right)} right "
            "solutions: a threshold needs both"
        )
    ends = {end for pair in (*wrong, *right) for end in pair if np.isfinite(end)}
    edges = np.array(sorted(ends | {0.0, 1.0}))
    middles = np.unique([0.5, *((edges[:-1] + edges[1:]) / 2)])
    shares = [_hits(np.array(side), middles) / len(side) for side in (wrong, right)]
    total = shares[0] + shares[1]
    f1 = np.divide(2 * shares[0] * shares[1], total, out=np.zeros_like(total), where=total > 0)
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    chosen = min(best, key=lambda i: abs(middles[i] - 0.5))
    return ChosenThreshold(float(middles[chosen]), float(f1[chosen]), len(items))


def _hits(intervals: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """For each threshold the number of intervals (low, high] that hold it."""
    kept = intervals[intervals[:, 0] < intervals[:, 1]]
    lows, highs = np.sort(kept[:, 0]), np.sort(kept[:, 1])
    below = np.searchsorted(lows, thresholds, side="left")
    return below - np.searchsorted(highs, thresholds, side="left")


def refuse_shared_problems(
    name: str, items: Sequence[StepItem], scored: Mapping[str, Sequence[StepItem]]
) -> None:
    """Raise UserError where thresholds are chosen on a problem of a set that is scored.

    Args:
        name: of the set that thresholds are chosen on.
        scored: sets whose figures are reported, by name.
    """
    ours = {" ".join(item.problem.split()) for item in items}
    for other, found in scored.items():
        shared = ours & {" ".join(item.problem.split()) for item in found}
        if shared:
            raise UserError(
                f"evaluate.threshold_set {name} has {len(shared)} problems of the set {other}, "
                f"which is scored ({min(shared)[:60]!r} ...): a threshold must be chosen on other "
                "problems than those it is reported on; take them out of one of the two files"
            )
