"""One answer of several: majority vote, weighted vote, best-of-N, and the score of a solution."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from stepwiser.config.models import ScoreReduction

T = TypeVar("T")

REDUCTIONS: Mapping[ScoreReduction, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "mean": lambda scores: math.fsum(scores) / len(scores),
    "product": math.prod,
}
"""One number of the scores of a solution's chunks."""


def solution_score(scores: Sequence[float], reduction: ScoreReduction) -> float | None:
    """One number for a solution, higher is better; ``None`` where no chunk has a score.

    Raises:
        ValueError: a score that is nan.
    """
    _refuse_nan(scores)
    return REDUCTIONS[reduction](scores) if scores else None


def majority_vote(
    answers: Sequence[str | None], key: Callable[[str], Hashable] | None = None
) -> str | None:
    """The most frequent answer; ``None`` if no sample has one.

    Answers with equal ``key`` count as one and the first of them is returned. Samples without an
    answer have no vote. Of equally frequent answers the one seen first wins.
    """
    return weighted_vote(answers, [1.0] * len(answers), key)


def weighted_vote(
    answers: Sequence[str | None],
    weights: Sequence[float],
    key: Callable[[str], Hashable] | None = None,
) -> str | None:
    """The answer with the largest sum of weights; ``None`` if no sample has one.

    As `majority_vote`, which it is where all weights are the same. Of answers with equal sums the
    most frequent one wins, of these the one seen first: weights that are all 0 are a majority vote.

    Raises:
        ValueError: lengths that differ, or a weight that is negative or not finite.
    """
    if len(answers) != len(weights):
        raise ValueError(
            f"weighted_vote needs one weight an answer, got {len(answers)} answers and "
            f"{len(weights)} weights"
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"weights must be finite and at least 0, got {list(weights)}")
    first: dict[Hashable, str] = {}
    votes: dict[Hashable, list[float]] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is None:
            continue
        name = answer if key is None else key(answer)
        first.setdefault(name, answer)
        votes.setdefault(name, []).append(weight)
    if not votes:
        return None
    # Summed exactly: the winner must not depend on the order of the samples.
    return first[max(votes, key=lambda name: (math.fsum(votes[name]), len(votes[name])))]


def best_of_n(candidates: Sequence[T], scores: Sequence[float]) -> T:
    """The candidate with the highest score, the first of equals.

    Raises:
        ValueError: no candidate, lengths that differ, or a score that is nan.
    """
    if not candidates or len(candidates) != len(scores):
        raise ValueError(
            f"best_of_n needs one score a candidate, got {len(candidates)} candidates "
            f"and {len(scores)} scores"
        )
    _refuse_nan(scores)
    return candidates[max(range(len(scores)), key=scores.__getitem__)]


def _refuse_nan(scores: Sequence[float]) -> None:
    if any(math.isnan(score) for score in scores):
        raise ValueError(f"scores must be numbers, got {list(scores)}")
