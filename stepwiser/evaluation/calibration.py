"""Does a judge's score mean what it says? Reliability against outcomes or Monte-Carlo values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ReliabilityBin:
    """Scores in ``lower ≤ score < upper`` (the last bin includes 1)."""

    lower: float
    upper: float
    count: int
    mean_score: float | None
    """``None`` in an empty bin."""
    mean_outcome: float | None
    outcome_standard_error: float | None
    """Of ``mean_outcome``, from the spread in the bin; ``None`` below two scores."""


@dataclass(frozen=True)
class PositionAccuracy:
    """How often the judge is right at one chunk position."""

    position: int
    count: int
    accuracy: float
    missing: int
    """Judgements without a verdict; they count as misses, as they do in the reward."""


def reliability_table(
    scores: Sequence[float], outcomes: Sequence[float], bins: int = 10
) -> list[ReliabilityBin]:
    """Mean outcome against mean score in ``bins`` bins of equal width, empty ones included.

    Args:
        scores: predicted probabilities that a chunk is good, 0..1.
        outcomes: what came of it: 0/1 labels, or Monte-Carlo values in 0..1.
        bins: how many.

    Raises:
        ValueError: nothing to bin, lengths that differ, a number outside 0..1, or ``bins`` below 1.
    """
    _check(scores, outcomes)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    members: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for score, outcome in zip(scores, outcomes, strict=True):
        members[_bin_of(score, bins)].append((score, outcome))
    return [_summarize(i, bins, pairs) for i, pairs in enumerate(members)]


def expected_calibration_error(
    scores: Sequence[float], outcomes: Sequence[float], bins: int = 10
) -> float:
    """Mean |mean outcome − mean score| over bins, weighted by count, 0..1. Raises as the table."""
    return math.fsum(
        row.count / len(scores) * abs(row.mean_score - row.mean_outcome)
        for row in reliability_table(scores, outcomes, bins)
        if row.mean_score is not None and row.mean_outcome is not None
    )


def brier_score(scores: Sequence[float], outcomes: Sequence[float]) -> float:
    """Mean squared difference of score and outcome, 0..1, lower is better. Raises as the table."""
    _check(scores, outcomes)
    return math.fsum((s - o) ** 2 for s, o in zip(scores, outcomes, strict=True)) / len(scores)


def accuracy_by_position(
    verdicts: Sequence[bool | None], labels: Sequence[bool], positions: Sequence[int]
) -> list[PositionAccuracy]:
    """Share of verdicts that equal the label at each position, positions rising.

    Args:
        verdicts: what the judge said of each chunk, ``None`` for no verdict.
        labels: what it should have said.
        positions: index of the chunk in its solution.

    Raises:
        ValueError: lengths that differ.
    """
    if not len(verdicts) == len(labels) == len(positions):
        raise ValueError(
            "one label and one position a verdict: got "
            f"{len(verdicts)} verdicts, {len(labels)} labels, {len(positions)} positions"
        )
    rows = []
    for position in sorted(set(positions)):
        here = [i for i, p in enumerate(positions) if p == position]
        hits = sum(verdicts[i] is not None and verdicts[i] == labels[i] for i in here)
        missing = sum(verdicts[i] is None for i in here)
        rows.append(PositionAccuracy(position, len(here), hits / len(here), missing))
    return rows


def _bin_of(score: float, bins: int) -> int:
    """Bin of a score; an edge belongs to the bin above it, also where ``score * bins`` rounds."""
    index = min(int(score * bins), bins - 1)
    if index + 1 < bins and score >= (index + 1) / bins:
        return index + 1
    return index - 1 if score < index / bins else index


def _summarize(index: int, bins: int, pairs: Sequence[tuple[float, float]]) -> ReliabilityBin:
    lower, upper, n = index / bins, (index + 1) / bins, len(pairs)
    if n == 0:
        return ReliabilityBin(lower, upper, 0, None, None, None)
    mean_score = math.fsum(score for score, _ in pairs) / n
    mean_outcome = math.fsum(outcome for _, outcome in pairs) / n
    error = None
    if n > 1:
        variance = math.fsum((outcome - mean_outcome) ** 2 for _, outcome in pairs) / (n - 1)
        error = math.sqrt(variance / n)
    return ReliabilityBin(lower, upper, n, mean_score, mean_outcome, error)


def _check(scores: Sequence[float], outcomes: Sequence[float]) -> None:
    if not scores or len(scores) != len(outcomes):
        raise ValueError(
            f"one outcome a score and at least one: got {len(scores)} scores "
            f"and {len(outcomes)} outcomes"
        )
    for name, values in (("score", scores), ("outcome", outcomes)):
        for i, value in enumerate(values):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} {i} must lie in 0..1, got {value}")
