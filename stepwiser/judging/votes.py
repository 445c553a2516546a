"""Several verdicts on one chunk: their majority, and one score of them (paper: Maj@8)."""

from __future__ import annotations

from collections.abc import Sequence


def majority(verdicts: Sequence[bool | None]) -> bool | None:
    """Majority of several judgements of one chunk (paper: Maj@8).

    A missing verdict is no vote. ``None`` if there is no vote at all. A tie is Negative: Positive
    means that the judge vouches for the chunk, and half of its voices do not; a good chunk refused
    costs one more sample, a wrong one let through costs the solution.
    """
    votes = [verdict for verdict in verdicts if verdict is not None]
    return 2 * sum(votes) > len(votes) if votes else None


def verdict_score(
    verdicts: Sequence[bool | None], probabilities: Sequence[float | None] | None = None
) -> float | None:
    """One number in 0..1 for a chunk, higher is better; ``None`` if no judgement has a verdict.

    Several verdicts: the share of Positive among them. A single verdict: its entry in
    ``probabilities`` (``positive_probability`` of each judgement) where there is one, else 0 or 1.

    Raises:
        ValueError: ``probabilities`` of another length than ``verdicts``, or outside 0..1.
    """
    if probabilities is None:
        probabilities = [None] * len(verdicts)
    if len(probabilities) != len(verdicts):
        raise ValueError(
            f"one probability a verdict: got {len(probabilities)} for {len(verdicts)} verdicts"
        )
    for probability in probabilities:
        if probability is not None and not 0.0 <= probability <= 1.0:
            raise ValueError(f"a probability must lie in 0..1, got {probability}")
    votes = [(v, p) for v, p in zip(verdicts, probabilities, strict=True) if v is not None]
    if not votes:
        return None
    if len(votes) == 1:
        verdict, probability = votes[0]
        return float(verdict) if probability is None else probability
    return sum(verdict for verdict, _ in votes) / len(votes)
