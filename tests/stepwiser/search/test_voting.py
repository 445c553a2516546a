"""Votes, best-of-N and scores of solutions against counting by hand."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwiser.search.voting import best_of_n, majority_vote, solution_score, weighted_vote

ANSWERS = st.lists(st.sampled_from(["3", "4", "5", None]), max_size=9)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        ([], None),
        ([None, None], None),
        (["3", "4", "4", None, None, None], "4"),
        (["3", "4", "4", "3"], "3"),
    ],
)
def test_majority_vote(answers: list[str | None], winner: str | None) -> None:
    assert majority_vote(answers) == winner


def test_majority_vote_by_key() -> None:
    assert majority_vote(["3", "0.5", "1/2", "3.0", "½"], key=lambda a: a[0] in "01½") == "0.5"


def test_weights_are_summed_by_key() -> None:
    answers, weights = ["3", "0.5", "1/2", "3.0"], [0.7, 0.4, 0.5, 0.1]
    assert weighted_vote(answers, weights) == "3"
    assert weighted_vote(answers, weights, key=lambda a: "/" in a or a == "0.5") == "0.5"
    assert weighted_vote(["3", "4", "4"], [0.0, 0.0, 0.0]) == "4", "nothing speaks against a vote"
    assert weighted_vote(["3", "4", "4"], [1.0, 0.5, 0.5]) == "4", "of equals the frequent one"
    assert weighted_vote([None, "4"], [1.0, 0.0]) == "4"
    assert weighted_vote(["3", *("4" * 10)], [1.0, *[0.1] * 10]) == "4", "ten tenths are one"


@settings(deadline=None)
@given(st.data(), ANSWERS)
def test_a_weighted_vote_has_the_largest_sum(
    data: st.DataObject, answers: list[str | None]
) -> None:
    numbers = [data.draw(st.integers(0, 8)) for _ in answers]
    winner = weighted_vote(answers, [number / 8 for number in numbers])
    sums: Counter[str] = Counter()
    for answer, number in zip(answers, numbers, strict=True):
        if answer is not None:
            sums[answer] += number
    if winner is None:
        assert not sums
    else:
        assert sums[winner] == max(sums.values())
        assert majority_vote(answers) == weighted_vote(answers, [0.3 for _ in answers])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("345"), st.floats(0, 1)), min_size=1), st.randoms())
def test_the_order_of_samples_does_not_decide(
    ballots: list[tuple[str, float]], rng: object
) -> None:
    def sums(answer: str) -> tuple[Fraction, int]:
        own = [Fraction(weight) for name, weight in ballots if name == answer]
        return sum(own, Fraction()), len(own)

    winner = weighted_vote(*zip(*ballots, strict=True))
    shuffled = ballots[:]
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    again = weighted_vote(*zip(*shuffled, strict=True))
    assert winner is not None and again is not None
    assert winner == again or [float(s) for s in sums(winner)] == [float(s) for s in sums(again)]


def test_weights_that_are_none() -> None:
    for weights in ([1.0], [1.0, -0.1], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="weight"):
            weighted_vote(["a", "b"], weights)


def test_best_of_n() -> None:
    assert best_of_n(["a", "b", "c"], [0.1, 0.9, 0.9]) == "b"
    for candidates, scores in (([], []), (["a"], []), (["a"], [float("nan")])):
        with pytest.raises(ValueError, match="score"):
            best_of_n(candidates, scores)


def test_one_score_of_several() -> None:
    scores = (0.5, 0.25, 0.75)
    assert solution_score(scores, "last") == 0.75
    assert solution_score(scores, "min") == 0.25
    assert solution_score(scores, "mean") == 0.5
    assert solution_score(scores, "product") == 0.09375
    assert solution_score((), "mean") is None
    with pytest.raises(ValueError, match="must be numbers"):
        solution_score((1.0, math.nan), "min")
