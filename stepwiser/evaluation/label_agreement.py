"""Would rollouts label a chunk the same way again?

Two annotations of the same chunks, each with responses and rollouts of its own
(`annotate.repeat_share`), are labelled by the same rule. That they agree says nothing about whether
a label is right; that they do not says that it hangs on chance.

The figures for fewer rollouts than were made take so many of those of both at random: each chunk's
label is then Positive with a probability, which is summed up exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb

import numpy as np

from stepwiser.annotation.stopping import Question, decide_label, trajectory_labels
from stepwiser.annotation.values import RolloutCounts
from stepwiser.data.records import Q0, ChunkValue, Trajectory
from stepwiser.evaluation.bootstrap import bootstrap


@dataclass(frozen=True)
class LabelAgreement:
    """How far two annotations give the same labels by one rule; the interval takes problems as the
    units."""

    rule: str
    rollouts: int
    """Of a prefix, behind the labels of either."""
    chunks: int
    """That both annotations label."""
    agreement: float | None
    """Share of them with the same label, 0..1; None without any."""
    low: float | None
    high: float | None
    kappa: float | None
    """Cohen's: agreement beyond what the two shares of Positive labels make by chance; None where
    one class has all labels."""
    one_sided: int
    """Chunks that only one of the two labels: in the other, labels end before them."""


@dataclass(frozen=True)
class _Twice:
    """The counts behind the two labels of a chunk, (before it, after it) each."""

    problem: str
    first: tuple[RolloutCounts, RolloutCounts]
    second: tuple[RolloutCounts, RolloutCounts]
    labels: tuple[bool, bool]


def label_agreement(
    question: Question,
    trajectories: Sequence[Trajectory],
    values: Mapping[str, Sequence[ChunkValue]],
    repeats: Mapping[str, Sequence[ChunkValue]],
) -> list[LabelAgreement]:
    """Agreement by the rollouts of a prefix: 1, 2, 4 … up to all that were planned.

    Args:
        question: the rule, and where labels end.
        trajectories: those without repeats are left out.
        values: of each trajectory, in chunk order.
        repeats: the same from the second annotation, Q_0 first.

    Where rollouts stopped early their number owes something to how they turned out, and only the
    labels themselves are compared. Empty where nothing was annotated twice, or where values that
    stopped early leave a label open.
    """
    twice: list[_Twice] = []
    one_sided = 0
    for trajectory in trajectories:
        again = repeats.get(trajectory.trajectory_id)
        if not again:
            continue
        pairs = _pairs(question, trajectory, values[trajectory.trajectory_id], again)
        if pairs is None:
            return []
        twice += pairs[0]
        one_sided += pairs[1]
    if not twice:
        return []
    counts = [count for t in twice for count in (*t.first, *t.second)]
    planned = max(count.planned for count in counts)
    fewer = [] if any(count.missing for count in counts) else _below(planned)
    return [
        _agreement(question, twice, rollouts, rollouts == planned, one_sided)
        for rollouts in (*fewer, planned)
    ]


def _below(planned: int) -> list[int]:
    """1, 2, 4 … below ``planned``."""
    return [2**k for k in range(planned.bit_length()) if 2**k < planned]


def _pairs(
    question: Question,
    trajectory: Trajectory,
    values: Sequence[ChunkValue],
    again: Sequence[ChunkValue],
) -> tuple[list[_Twice], int] | None:
    """Chunks that both label, and how many one does; None where a label is open."""
    start, rest = again[0], again[1:]
    assert start.chunk_index == Q0, "repeats begin with the value before the first chunk"
    second = replace(trajectory, problem_successes=start.successes, problem_trials=start.trials)
    labels = trajectory_labels(question, trajectory, values)
    others = trajectory_labels(question, second, rest)
    paths = _path(trajectory, values), _path(second, rest)
    found = []
    for i, (label, other) in enumerate(zip(labels, others, strict=False)):
        if label is None or other is None:
            return None
        first, repeated = ((path[i], path[i + 1]) for path in paths)
        found.append(_Twice(trajectory.problem_id, first, repeated, (label, other)))
    if None in labels or None in others:
        return None
    return found, abs(len(labels) - len(others))


def _path(trajectory: Trajectory, values: Sequence[ChunkValue]) -> list[RolloutCounts]:
    trials = trajectory.problem_trials
    start = RolloutCounts(trajectory.problem_successes, trials, trials)
    return [start, *(RolloutCounts(v.successes, v.trials, v.planned) for v in values)]


def _agreement(
    question: Question, twice: Sequence[_Twice], rollouts: int, whole: bool, one_sided: int
) -> LabelAgreement:
    if whole:
        chances = np.array([t.labels for t in twice], dtype=float)
    else:
        chances = np.array(
            [[_positive(question, *pair, rollouts) for pair in (t.first, t.second)] for t in twice]
        )
    same = (chances * chances[:, ::-1]).sum(1) / 2 + ((1 - chances) * (1 - chances[:, ::-1])).sum(
        1
    ) / 2
    sums = np.stack([same, np.ones_like(same)], axis=1)[:, None]
    interval = bootstrap(sums, [t.problem for t in twice], lambda s: s[..., 0] / s[..., 1])
    one, other = chances.mean(0)
    chance = float(one * other + (1 - one) * (1 - other))
    share = float(same.mean())
    return LabelAgreement(
        rule=str(question.rule),
        rollouts=rollouts,
        chunks=len(twice),
        agreement=share,
        low=interval.low,
        high=interval.high,
        kappa=None if np.isclose(chance, 1.0) else (share - chance) / (1 - chance),
        one_sided=one_sided,
    )


def _positive(
    question: Question, before: RolloutCounts, current: RolloutCounts, rollouts: int
) -> float:
    """Probability of a Positive label from so many of the rollouts of both, taken at random."""
    return sum(
        old_chance * new_chance
        for old, old_chance in _part(before, rollouts)
        for new, new_chance in _part(current, rollouts)
        if decide_label(question, old, new)
    )


def _part(counts: RolloutCounts, size: int) -> Iterator[tuple[RolloutCounts, float]]:
    """What so many of the completions may have come to, with probabilities (hypergeometric)."""
    size = min(size, counts.trials)
    right, wrong = counts.successes, counts.trials - counts.successes
    for k in range(max(0, size - wrong), min(size, right) + 1):
        chance = comb(right, k) * comb(wrong, size - k) / comb(counts.trials, size)
        yield RolloutCounts(k, size, size), chance
