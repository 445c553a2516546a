"""Scores on ProcessBench: find the first wrong step of a solution, or say that there is none.

A prediction or label is the index of the first wrong step from 0, or −1. Two protocols differ in
what they call an erroneous item, and are never to be mixed: ``score_official`` goes by the label,
``score_by_final_answer`` by the solution's final answer (the paper's tables).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessBenchScore:
    """Accuracies and their harmonic mean, as fractions 0..1; ``None`` where undefined."""

    error_accuracy: float | None
    """Share of hits among erroneous items."""
    correct_accuracy: float | None
    """Share of hits among correct items."""
    f1: float | None
    n_error: int
    n_correct: int
    f1_standard_error: float | None
    """By the delta method; ``None`` also where F1 is 0 because both accuracies are, for there the
    method has no derivative to go by."""

    @property
    def undefined_because(self) -> str:
        """Why F1 is undefined; empty when it is defined."""
        missing = [
            name for name, n in (("erroneous", self.n_error), ("correct", self.n_correct)) if n == 0
        ]
        return f"no {' and no '.join(missing)} items" if missing else ""


@dataclass(frozen=True)
class AverageScore:
    """Unweighted mean over subsets; ``None`` where a subset has no such figure."""

    error_accuracy: float | None
    correct_accuracy: float | None
    f1: float | None
    f1_standard_error: float | None
    subsets: tuple[str, ...]
    undefined_because: str
    """Names the subsets without F1; empty when every subset has one."""


def first_negative(verdicts: Sequence[bool | None]) -> int:
    """Index of the first Negative, −1 if there is none.

    A missing verdict (``None``) is not a Negative: a judge that fails to answer has not found an
    error. Report ``missing_verdicts`` beside the score.
    """
    return next((i for i, verdict in enumerate(verdicts) if verdict is False), -1)


def missing_verdicts(verdicts: Sequence[bool | None]) -> int:
    """How many steps up to the first Negative (or the end) got no verdict."""
    end = first_negative(verdicts)
    asked = verdicts if end == -1 else verdicts[:end]
    return sum(verdict is None for verdict in asked)


def score_official(predictions: Sequence[int], labels: Sequence[int]) -> ProcessBenchScore:
    """The benchmark's own protocol: an item is erroneous if its label is not −1.

    Raises:
        ValueError: lengths that differ, or an index below −1.
    """
    _check(predictions, labels)
    return _score(predictions, labels, [label != -1 for label in labels])


def score_by_final_answer(
    predictions: Sequence[int], labels: Sequence[int], final_answer_correct: Sequence[bool]
) -> ProcessBenchScore:
    """The paper's protocol: an item is erroneous if its final answer is wrong.

    A hit is still a prediction that equals the label, so a right final answer reached by a wrong
    step is among the correct items and asks for that step.

    Raises:
        ValueError: lengths that differ, or an index below −1.
    """
    _check(predictions, labels)
    if len(final_answer_correct) != len(labels):
        raise ValueError(
            f"one final_answer_correct an item: got {len(final_answer_correct)} for {len(labels)}"
        )
    return _score(predictions, labels, [not right for right in final_answer_correct])


def average_scores(scores: Mapping[str, ProcessBenchScore]) -> AverageScore:
    """Mean over subsets, each of the same weight; the standard error takes them as independent.

    Raises:
        ValueError: no subset.
    """
    if not scores:
        raise ValueError("average_scores needs at least one subset, got none")
    parts = list(scores.values())
    errors = [score.f1_standard_error for score in parts]
    known = [error for error in errors if error is not None]
    return AverageScore(
        error_accuracy=_mean([score.error_accuracy for score in parts]),
        correct_accuracy=_mean([score.correct_accuracy for score in parts]),
        f1=_mean([score.f1 for score in parts]),
        f1_standard_error=math.hypot(*known) / len(parts) if len(known) == len(parts) else None,
        subsets=tuple(scores),
        undefined_because="; ".join(
            f"{name}: {score.undefined_because}"
            for name, score in scores.items()
            if score.undefined_because
        ),
    )


def _score(
    predictions: Sequence[int], labels: Sequence[int], erroneous: Sequence[bool]
) -> ProcessBenchScore:
    hits = {True: 0, False: 0}
    sizes = {True: 0, False: 0}
    for prediction, label, is_error in zip(predictions, labels, erroneous, strict=True):
        sizes[is_error] += 1
        hits[is_error] += prediction == label
    a, b = (hits[side] / sizes[side] if sizes[side] else None for side in (True, False))
    f1 = standard_error = None
    if a is not None and b is not None:
        f1 = 2 * a * b / (a + b) if a + b else 0.0
        if a + b:
            variance_a = a * (1 - a) / sizes[True]
            variance_b = b * (1 - b) / sizes[False]
            slope_a, slope_b = 2 * b**2 / (a + b) ** 2, 2 * a**2 / (a + b) ** 2
            standard_error = math.sqrt(slope_a**2 * variance_a + slope_b**2 * variance_b)
    return ProcessBenchScore(a, b, f1, sizes[True], sizes[False], standard_error)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _check(predictions: Sequence[int], labels: Sequence[int]) -> None:
    if len(predictions) != len(labels):
        raise ValueError(f"one prediction an item: got {len(predictions)} for {len(labels)} labels")
    for name, values in (("prediction", predictions), ("label", labels)):
        for i, value in enumerate(values):
            if value < -1:
                raise ValueError(f"{name} of item {i} must be -1 or a step index, got {value}")
