"""Label rules against hand-computed labels, and against exact rational arithmetic."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import pytest

from stepwiser.annotation.label_rules import (
    LabelRule,
    balance,
    class_shares,
    label_chunks,
    label_if_decided,
)
from stepwiser.annotation.values import ValueEstimate


def test_abs_q() -> None:
    assert label_chunks("abs_q", [0.5, 1 / 16, 0.0, 1.0], 0.0) == [True, True, False, True]


def test_rel_ratio() -> None:
    # Ratios from Q_0 = .5: 1.5, .5, .67, then 0/.25, then from 0.
    values = [0.75, 0.375, 0.25, 0.0, 0.0, 0.0625]
    expected = [True, False, False, False, False, True]
    assert label_chunks(LabelRule.REL_RATIO, values, 0.5, gamma=0.7) == expected
    assert label_chunks(LabelRule.REL_RATIO, values, 0.5, gamma=0.6)[2] is True


def test_rel_ratio_uses_the_problem_value_first() -> None:
    assert label_chunks("rel_ratio", [0.5], 1.0, gamma=0.7) == [False]
    assert label_chunks("rel_ratio", [0.5], 0.0, gamma=0.7) == [True]
    assert label_chunks("rel_ratio", [0.0], 0.0, gamma=0.7) == [False]


def test_rel_effective() -> None:
    # Q .5 → .125: best of 4 .9375 → .4138; .125 + .8·(−.5237) < 0, but .125 + .2·(−.5237) > 0.
    assert label_chunks("rel_effective", [0.125], 0.5, alpha=0.8) == [False]
    assert label_chunks("rel_effective", [0.125], 0.5, alpha=0.2) == [True]
    # With n = 1: .125 + .2·(.125 − .5) = .05.
    assert label_chunks("rel_effective", [0.125], 0.5, alpha=0.2, best_of=1) == [True]
    assert label_chunks("rel_effective", [0.0], 0.0) == [False]


def test_a_tie_is_negative() -> None:
    # 7 of 12 after 10 of 12 is exactly .7, and 3 of 10 after 6 of 10 gains exactly nothing, but
    # floating point alone would let both pass.
    assert (7 / 12) / (10 / 12) > 0.7
    assert label_chunks("rel_ratio", [7 / 12], 10 / 12, gamma=0.7) == [False]
    assert label_chunks("rel_effective", [0.3], 0.6, alpha=1.0, best_of=1) == [False]


def exact(rule: LabelRule, old: Fraction, new: Fraction, a: Fraction, g: Fraction) -> bool:
    if rule is LabelRule.ABS_Q:
        return new > 0
    if rule is LabelRule.REL_EFFECTIVE:
        return new + a * ((1 - (1 - new) ** 4) - (1 - (1 - old) ** 4)) > 0
    return new > 0 if old == 0 else new / old > g


@pytest.mark.parametrize("rule", LabelRule)
@pytest.mark.parametrize("trials", [10, 12, 16])
def test_every_pair_of_values_against_exact_arithmetic(rule: LabelRule, trials: int) -> None:
    grid = range(trials + 1)
    for old, new in itertools.product(grid, grid):
        for a, g in ((8, 7), (4, 8), (2, 6), (10, 10), (6, 12)):
            want = exact(
                rule, Fraction(old, trials), Fraction(new, trials), Fraction(a, 10), Fraction(g, 10)
            )
            got = label_chunks(rule, [new / trials], old / trials, alpha=a / 10, gamma=g / 10)
            assert got == [want], (old, new, a, g)


@pytest.mark.parametrize("rule", LabelRule)
def test_decided_early_means_decided_rightly(rule: LabelRule) -> None:
    """Reveal rollouts one by one: once decided, the label is the one of all 16."""
    rng = random.Random(0)
    saved = 0
    for _ in range(300):
        before = ValueEstimate(rng.randint(0, 16), 16)
        p = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        outcomes = [rng.random() < p for _ in range(16)]
        final = label_chunks(rule, [sum(outcomes) / 16], before.mean)[0]
        for n in range(1, 17):
            bounds = ValueEstimate(sum(outcomes[:n]), n).bounds(16)
            decided = label_if_decided(rule, before.bounds(16), bounds)
            if decided is not None:
                assert decided is final
                saved += 16 - n
                break
        else:
            pytest.fail("undecided after all rollouts")
    assert saved > 0


def test_open_ranges_stay_open() -> None:
    assert label_if_decided("abs_q", (0.0, 1.0), (0.0, 0.5)) is None
    assert label_if_decided("rel_ratio", (0.0, 1.0), (0.5, 0.5)) is None
    assert label_if_decided("rel_ratio", (0.0, 0.5), (0.5, 0.5)) is True


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: label_chunks("best", [0.5], 0.5), "best"),
        (lambda: label_chunks("abs_q", [0.5, 1.5], 0.5), r"Q_2 must lie in 0\.\.1, got 1\.5"),
        (lambda: label_chunks("abs_q", [0.5], math.nan), "Q_0"),
        (lambda: label_chunks("rel_ratio", [0.5], 0.5, gamma=-1), "gamma must be at least 0"),
        (lambda: label_chunks("rel_ratio", [0.5], 0.5, alpha=math.inf), "alpha"),
        (lambda: label_if_decided("abs_q", (0, 1), (0.5, 0.4)), "current"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_no_chunks_no_labels() -> None:
    assert label_chunks("rel_ratio", [], 0.5) == []


def test_balance_halves_and_keeps_order() -> None:
    labels = [i % 4 != 0 for i in range(100)]  # 75 Positive
    items = list(range(100))
    kept = balance(items, labels, random.Random(1))
    assert len(kept) == 50 and kept == sorted(kept)
    assert sum(labels[i] for i in kept) == 25
    assert {i for i in items if not labels[i]} <= set(kept)  # the smaller class stays whole
    assert kept == balance(items, labels, random.Random(1))
    assert kept != balance(items, labels, random.Random(2))


def test_balance_draws_every_item_alike() -> None:
    counts = [0] * 10
    for seed in range(2000):
        for i in balance(range(10), [False, False] + [True] * 8, random.Random(seed)):
            counts[i] += 1
    assert counts[:2] == [2000, 2000]
    assert all(400 < n < 600 for n in counts[2:])  # 2 of 8: 500 each, sd 19


def test_balance_refuses() -> None:
    assert balance([], [], random.Random(0)) == []
    with pytest.raises(ValueError, match="none of them is Negative"):
        balance([1, 2], [True, True], random.Random(0))
    with pytest.raises(ValueError, match="2 items and 1 labels"):
        balance([1, 2], [True], random.Random(0))


def test_class_shares() -> None:
    shares = class_shares([True, True, False, True])
    assert (shares.positive, shares.negative, shares.total) == (3, 1, 4)
    assert shares.positive_share == 0.75
    assert math.isnan(class_shares([]).positive_share)
