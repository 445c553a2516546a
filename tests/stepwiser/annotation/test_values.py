"""Value estimates against hand-computed intervals."""

from __future__ import annotations

import pytest

from stepwiser.annotation.values import RolloutCounts, ValueEstimate, best_of_n


def test_mean() -> None:
    assert ValueEstimate(7, 16).mean == 0.4375


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Half of 16: .5 ± z · sqrt(.25/16 + z²/1024) / (1 + z²/16) = .5 ± .22 with z² = 3.8415.
        (8, 16, 0.2799956, 0.7200044),
        (0, 16, 0.0, 0.1936076),
        (16, 16, 0.8063924, 1.0),
        (1, 10, 0.0178762, 0.4041500),
    ],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert ValueEstimate(successes, trials).interval() == pytest.approx((low, high), abs=1e-6)


def test_interval_solves_the_score_equation() -> None:
    """The bounds are where |p̂ − p| is exactly z standard errors *of p*."""
    value, z = ValueEstimate(5, 16), 1.6448536269514722
    for p in value.interval(0.9):
        assert abs(value.mean - p) == pytest.approx(z * (p * (1 - p) / 16) ** 0.5)


def test_bounds_close_in_on_the_mean() -> None:
    assert ValueEstimate(3, 8).bounds(16) == (3 / 16, 11 / 16)
    assert ValueEstimate(3, 8).bounds(8) == (3 / 8, 3 / 8)
    with pytest.raises(ValueError, match="at least the 8 made, got 4"):
        ValueEstimate(3, 8).bounds(4)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 4), (5, 4), (1, -1)])
def test_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"got (trials={trials}|successes={successes})"):
        ValueEstimate(successes, trials)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_impossible_confidence(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        ValueEstimate(1, 2).interval(confidence)


def test_best_of_n() -> None:
    assert best_of_n(0.5) == 1 - 0.5**4
    assert best_of_n(0.25, 2) == 0.4375
    assert (best_of_n(0.0), best_of_n(1.0)) == (0.0, 1.0)
    for q, n in ((-0.1, 4), (1.1, 4), (float("nan"), 4), (0.5, 0)):
        with pytest.raises(ValueError):
            best_of_n(q, n)


def test_a_tally_knows_what_is_still_possible() -> None:
    counts = RolloutCounts(3, 8, 16)
    assert counts.missing == 8 and counts.bounds == (3 / 16, 11 / 16)
    assert counts.plus(2, 6) == RolloutCounts(5, 16, 16)
    assert counts.plus(2, 6).bounds == (5 / 16, 5 / 16)
    for counts in ((1, 0, 4), (-1, 2, 4), (0, 5, 4), (0, 0, 0)):
        with pytest.raises(ValueError, match=f"got {counts[0]}, {counts[1]}, {counts[2]}"):
            RolloutCounts(*counts)


def test_completions_to_come_under_jeffreys_prior() -> None:
    assert RolloutCounts(0, 0, 1).predictive() == pytest.approx((0.5, 0.5))
    assert RolloutCounts(1, 1, 2).predictive() == pytest.approx((0.25, 0.75))
    # Two failures after four: 4.5/5 · 5.5/6; two successes: .5/5 · 1.5/6.
    assert RolloutCounts(0, 4, 6).predictive() == pytest.approx((0.825, 0.15, 0.025))
    assert RolloutCounts(2, 4, 4).predictive() == pytest.approx((1.0,))
    assert sum(RolloutCounts(3, 9, 5000).predictive()) == pytest.approx(1.0, abs=1e-6)
