"""From Monte-Carlo values to step labels, and class balance (paper: step annotation)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from random import Random
from typing import TypeVar

from stepwiser.annotation.values import best_of_n

T = TypeVar("T")


class LabelRule(StrEnum):
    """When a chunk is good (``True``, Positive), from its value Q_i and the one before, Q_{i-1}."""

    ABS_Q = "abs_q"
    """Q_i > 0: the right answer can still be reached."""
    REL_EFFECTIVE = "rel_effective"
    """Q_i + α · (Qμ_i − Qμ_{i−1}) > 0, where μ is the best-of-n policy."""
    REL_RATIO = "rel_ratio"
    """Q_i / Q_{i−1} > γ; where Q_{i−1} = 0, the rule is Q_i > 0."""


def label_chunks(
    rule: LabelRule | str,
    values: Sequence[float],
    initial_value: float,
    *,
    alpha: float = 0.8,
    gamma: float = 0.7,
    best_of: int = 4,
) -> list[bool]:
    """Label the chunks of one trajectory.

    Args:
        rule: which rule.
        values: Q_1..Q_n, each 0..1, the value of the prefix that ends with chunk i.
        initial_value: Q_0, the pass rate of the problem itself.
        alpha: weight of the gain in Rel-Effective (paper: .4 at 1.5B, .8 at 7B).
        gamma: threshold of Rel-Ratio (paper: .8 at 1.5B, .7 at 7B).
        best_of: n of the best-of-n policy in Rel-Effective.

    A tie with the threshold is Negative, also where floating point would let it pass.

    Raises:
        ValueError: an unknown rule, a value outside 0..1, or α or γ below 0.
    """
    rule = LabelRule(rule)
    path = [initial_value, *values]
    for i, q in enumerate(path):
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"Q_{i} must lie in 0..1, got {q}")
    _check_parameters(alpha, gamma)
    return [_label(rule, old, new, alpha, gamma, best_of) for old, new in pairwise(path)]


def label_if_decided(
    rule: LabelRule | str,
    before: tuple[float, float],
    current: tuple[float, float],
    *,
    alpha: float = 0.8,
    gamma: float = 0.7,
    best_of: int = 4,
) -> bool | None:
    """The label a chunk is bound to get, or ``None`` while rollouts to come may still change it.

    Args:
        rule: which rule.
        before: least and greatest Q_{i−1} still possible (``ValueEstimate.bounds``).
        current: least and greatest Q_i still possible.
        alpha, gamma, best_of: as in ``label_chunks``.

    Every rule rises with Q_i and falls with Q_{i−1}, so the two extreme outcomes decide: annotation
    may stop a chunk early and give it the very label of the full budget. (The *values* of chunks
    that were stopped early are biased; their labels are not.)

    Raises:
        ValueError: as ``label_chunks``, or a range that is upside down.
    """
    rule = LabelRule(rule)
    _check_parameters(alpha, gamma)
    for name, (low, high) in (("before", before), ("current", current)):
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"{name} must be a rising range within 0..1, got {(low, high)}")
    worst = _label(rule, before[1], current[0], alpha, gamma, best_of)
    best = _label(rule, before[0], current[1], alpha, gamma, best_of)
    return worst if worst == best else None


def _label(
    rule: LabelRule, old: float, new: float, alpha: float, gamma: float, best_of: int
) -> bool:
    if rule is LabelRule.ABS_Q:
        return new > 0
    if rule is LabelRule.REL_EFFECTIVE:
        return _exceeds(new + alpha * (best_of_n(new, best_of) - best_of_n(old, best_of)), 0.0)
    return new > 0 if old == 0 else _exceeds(new / old, gamma)


def _exceeds(value: float, threshold: float) -> bool:
    """Greater, by more than rounding: (7/12) / (10/12) is a tie with 0.7."""
    return value > threshold and not math.isclose(value, threshold, rel_tol=1e-12, abs_tol=1e-12)


def _check_parameters(alpha: float, gamma: float) -> None:
    for name, parameter in (("alpha", alpha), ("gamma", gamma)):
        if not (math.isfinite(parameter) and parameter >= 0):
            raise ValueError(f"{name} must be at least 0, got {parameter}")


@dataclass(frozen=True)
class ClassShares:
    """How many labels there are and what part of them is Positive."""

    positive: int
    negative: int

    @property
    def total(self) -> int:
        return self.positive + self.negative

    @property
    def positive_share(self) -> float:
        """0..1; nan without labels."""
        return self.positive / self.total if self.total else math.nan


def class_shares(labels: Sequence[bool]) -> ClassShares:
    """Count the two classes."""
    positive = sum(map(bool, labels))
    return ClassShares(positive, len(labels) - positive)


def balance(items: Sequence[T], labels: Sequence[bool], rng: Random) -> list[T]:
    """Downsample the larger class until both are equal; the order of what stays is kept.

    The same items, labels and generator state give the same result. Without balance a judge learns
    to say "Positive" (paper: ablation on prompt balancing).

    Raises:
        ValueError: lengths that differ, or a class without a single item.
    """
    if len(items) != len(labels):
        raise ValueError(f"one label an item: got {len(items)} items and {len(labels)} labels")
    if not items:
        return []
    by_class = {
        value: [i for i, y in enumerate(labels) if bool(y) is value] for value in (True, False)
    }
    size = min(len(indices) for indices in by_class.values())
    if size == 0:
        absent = "Positive" if not by_class[True] else "Negative"
        raise ValueError(f"cannot balance {len(items)} items: none of them is {absent}")
    kept = sorted(i for indices in by_class.values() for i in rng.sample(indices, size))
    return [items[i] for i in kept]
