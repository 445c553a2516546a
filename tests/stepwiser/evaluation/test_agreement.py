"""Agreement of votes against hand-computed values."""

from __future__ import annotations

import math

import pytest

from stepwiser.evaluation.agreement import accuracy_by_margin, vote_agreement


def test_agreement_by_hand() -> None:
    # Steps: 4-0, 3-1, 2-2 and one with two silent votes; 16 votes: 10 Positive, 4 Negative, 2 none.
    solutions = [[[1, 1, 1, 1], [1, 1, 1, 0]], [[1, 1, 0, 0], [1, 0, -1, -1]]]
    found = vote_agreement(solutions)
    assert found is not None
    agreeing = (1 + 3 / 6 + 2 / 6 + 1 / 6) / 4
    chance = (10 / 16) ** 2 + (4 / 16) ** 2 + (2 / 16) ** 2
    assert found.pairwise == pytest.approx(agreeing) == pytest.approx(0.5)
    assert found.kappa == pytest.approx((agreeing - chance) / (1 - chance))
    assert (found.steps, found.votes, found.unanimous) == (4, 4, 0.25)
    # Solution 1 has 1.5 of 2 agreeing, solution 2 has 0.5 of 2: residuals ±0.5 from 0.5 a step.
    assert found.pairwise_standard_error == pytest.approx(math.sqrt(2 * 0.5) / 4)


def test_kappa_error_leaves_one_solution_out() -> None:
    solutions = [[[1, 0]], [[1, 1]], [[0, 0]], [[1, 1]]]
    found = vote_agreement(solutions)
    assert found is not None
    without = [
        vote_agreement(solutions[:i] + solutions[i + 1 :]).kappa  # type: ignore[union-attr]
        for i in range(4)
    ]
    mean = sum(without) / 4  # type: ignore[arg-type]
    expected = math.sqrt(3 / 4 * sum((k - mean) ** 2 for k in without))  # type: ignore[operator]
    assert found.kappa_standard_error == pytest.approx(expected)


def test_random_votes_have_no_kappa_and_equal_ones_have_one() -> None:
    independent = [[[a, b]] for a in (0, 1) for b in (0, 1)]
    found = vote_agreement(independent)
    assert found is not None and found.kappa == pytest.approx(0.0) and found.pairwise == 0.5
    same = vote_agreement([[[1, 1, 1]], [[0, 0, 0]]])
    assert same is not None and same.kappa == 1.0 and same.unanimous == 1.0
    assert same.kappa_standard_error is None  # without one of them, one answer is left


def test_a_judge_that_always_says_the_same_has_no_kappa() -> None:
    found = vote_agreement([[[1, 1]], [[1, 1]]])
    assert found is not None and found.pairwise == 1.0 and found.kappa is None


def test_one_vote_has_nothing_to_agree_with() -> None:
    assert vote_agreement([[[1], [0]]]) is None
    assert vote_agreement([]) is None
    with pytest.raises(ValueError, match="as many votes"):
        vote_agreement([[[1, 1], [0]]])
    with pytest.raises(ValueError, match="one of"):
        vote_agreement([[[1, 2]]])


def test_accuracy_by_margin() -> None:
    votes = [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [-1] * 4]
    labels = [True, True, True, False, True, False]
    rows = {row.margin: row for row in accuracy_by_margin(votes, labels)}
    assert [*rows] == [0, 2, 4]
    # A tie says Negative: right of the wrong step; a step without any verdict is a miss.
    assert (rows[0].count, rows[0].missing) == (3, 1)
    assert rows[0].accuracy == pytest.approx(1 / 3)
    assert rows[0].standard_error == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 3))
    assert (rows[2].accuracy, rows[4].accuracy) == (1.0, 0.5)
    with pytest.raises(ValueError, match="one label"):
        accuracy_by_margin(votes, labels[:2])
