"""From Monte-Carlo values to step labels, and class balance (paper: step annotation)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from random import Random
from typing import TypeVar

from stepwiser.annotation.values import best_of_n

T = TypeVar("T")


class LabelRule(StrEnum):
    """When a chunk is good (``True``, Positive), from its value Q_i and the one before, Q_{i-1}.

    `DEFINITIONS` has what each of them is; a further one needs an entry there, a name here and in
    `config.models.RuleConfig`, and nothing else.
    """

    ABS_Q = "abs_q"
    REL_EFFECTIVE = "rel_effective"
    REL_RATIO = "rel_ratio"

    @property
    def definition(self) -> RuleDefinition:
        return DEFINITIONS[self]


@dataclass(frozen=True)
class RuleParameters:
    """What rules may depend on besides the two values; each reads its own of them."""

    alpha: float
    gamma: float
    best_of: int


@dataclass(frozen=True)
class RuleDefinition:
    """A label rule, for the code that labels and for the people who read of it.

    Whatever `positive` computes must rise with Q_i and not rise with Q_{i-1}: early stopping takes
    the extreme outcomes for the two ends of what is possible.
    """

    positive: Callable[[float, float, RuleParameters], bool]
    """Of (Q_{i-1}, Q_i, parameters)."""
    title: str
    formula: str
    """In words, with the parameters in braces."""
    parameters: tuple[str, ...] = ()
    """Those that it reads, by their names in the configuration."""
    reads_previous: bool = True
    """Whether Q_{i-1} matters, so that its rollouts stand behind the label too."""


def _rel_effective(old: float, new: float, p: RuleParameters) -> bool:
    return _exceeds(new + p.alpha * (best_of_n(new, p.best_of) - best_of_n(old, p.best_of)), 0.0)


def _rel_ratio(old: float, new: float, p: RuleParameters) -> bool:
    return new > 0 if old == 0 else _exceeds(new / old, p.gamma)


DEFINITIONS: dict[LabelRule, RuleDefinition] = {
    LabelRule.ABS_Q: RuleDefinition(
        lambda old, new, p: new > 0,
        "Abs-Q",
        "Positive if the value after the step is above 0",
        reads_previous=False,
    ),
    LabelRule.REL_EFFECTIVE: RuleDefinition(
        _rel_effective,
        "Rel-Effective",
        "α = {alpha:g}, n = {best_of}: Positive if the value plus α times the change of the "
        "best-of-n value is above 0",
        ("alpha", "best_of"),
    ),
    LabelRule.REL_RATIO: RuleDefinition(
        _rel_ratio,
        "Rel-Ratio",
        "γ = {gamma:g}: Positive if the value is more than γ times the value before the step",
        ("gamma",),
    ),
}
"""Paper, section 3.2; where Q_{i-1} = 0, Rel-Ratio is Q_i > 0."""


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
    parameters = RuleParameters(alpha, gamma, best_of)
    positive = rule.definition.positive
    return [positive(old, new, parameters) for old, new in pairwise(path)]


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
    parameters = RuleParameters(alpha, gamma, best_of)
    worst = rule.definition.positive(before[1], current[0], parameters)
    best = rule.definition.positive(before[0], current[1], parameters)
    return worst if worst == best else None


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
