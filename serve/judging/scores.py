"""One number for a solution from the scores of its steps."""

from __future__ import annotations

from collections.abc import Sequence

from serve.schema import JudgeResponse, Reduction
from stepwiser.search.voting import REDUCTIONS


def step_scores(response: JudgeResponse) -> list[float] | None:
    """The score of every step; None where a step has none, which no number can stand for."""
    scores = [step.score for step in response.steps if step.score is not None]
    return scores if len(scores) == len(response.steps) else None


def reduce_scores(scores: Sequence[float], reduction: Reduction) -> float:
    """``scores`` of at least one step, each 0 to 1, as one number of the same range."""
    return REDUCTIONS[reduction](scores)
