"""Calibration figures against hand-computed ones."""

from __future__ import annotations

import random

import pytest

from stepwiser.evaluation.calibration import (
    accuracy_by_position,
    brier_score,
    expected_calibration_error,
    reliability_table,
)

SCORES = [0.1, 0.15, 0.5, 0.9, 1.0]
OUTCOMES = [0.0, 1.0, 0.25, 1.0, 1.0]


def test_table_by_hand() -> None:
    low, middle, high = reliability_table(SCORES, OUTCOMES, bins=3)
    assert (low.lower, low.upper, low.count) == (0.0, 1 / 3, 2)
    assert (low.mean_score, low.mean_outcome) == (pytest.approx(0.125), 0.5)
    assert low.outcome_standard_error == pytest.approx(0.5)  # sqrt((.25 + .25) / 1 / 2)
    assert (middle.count, middle.mean_outcome, middle.outcome_standard_error) == (1, 0.25, None)
    assert (high.count, high.mean_score, high.mean_outcome) == (2, pytest.approx(0.95), 1.0)


def test_error_and_brier_by_hand() -> None:
    ece = expected_calibration_error(SCORES, OUTCOMES, bins=3)
    assert ece == pytest.approx(2 / 5 * 0.375 + 1 / 5 * 0.25 + 2 / 5 * 0.05)
    assert brier_score(SCORES, OUTCOMES) == pytest.approx((0.01 + 0.7225 + 0.0625 + 0.01 + 0.0) / 5)


def test_empty_bins_are_kept_and_say_so() -> None:
    table = reliability_table([0.05], [1.0])
    assert [row.count for row in table] == [1] + [0] * 9
    assert table[5].mean_score is None and table[5].mean_outcome is None


@pytest.mark.parametrize("bins", [1, 3, 7, 10, 49])
def test_edges_belong_to_the_bin_above(bins: int) -> None:
    edges = [i / bins for i in range(bins)]
    assert [row.count for row in reliability_table(edges, edges, bins)] == [1] * bins
    assert reliability_table([1.0], [1.0], bins)[-1].count == 1


def test_a_calibrated_judge_has_a_small_error_and_a_shifted_one_has_not() -> None:
    rng = random.Random(0)
    scores = [rng.random() for _ in range(20000)]
    outcomes = [float(rng.random() < s) for s in scores]
    assert expected_calibration_error(scores, outcomes) < 0.02
    assert brier_score(scores, outcomes) == pytest.approx(1 / 6, abs=0.01)
    shifted = [min(1.0, s + 0.2) for s in scores]
    assert expected_calibration_error(shifted, outcomes) > 0.15


def test_accuracy_by_position() -> None:
    rows = accuracy_by_position(
        [True, False, None, True, False], [True, True, False, False, False], [0, 0, 0, 2, 2]
    )
    assert [(r.position, r.count, r.accuracy, r.missing) for r in rows] == [
        (0, 3, pytest.approx(1 / 3), 1),
        (2, 2, 0.5, 0),
    ]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="got 0 scores"):
        reliability_table([], [])
    with pytest.raises(ValueError, match="2 scores and 1 outcomes"):
        brier_score([0.1, 0.2], [1.0])
    with pytest.raises(ValueError, match=r"score 1 must lie in 0\.\.1, got 1\.2"):
        expected_calibration_error([0.1, 1.2], [1.0, 1.0])
    with pytest.raises(ValueError, match="outcome 0"):
        brier_score([0.1], [float("nan")])
    with pytest.raises(ValueError, match="bins"):
        reliability_table([0.1], [1.0], bins=0)
    with pytest.raises(ValueError, match="1 verdicts, 2 labels, 1 positions"):
        accuracy_by_position([True], [True, False], [0])
