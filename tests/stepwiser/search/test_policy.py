"""Sampled solutions: shares of right ones, and majorities by the equality of the checker."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from stepwiser.data.records import Problem
from stepwiser.data.verifiers import AnswerChecker, ExactChecker, MathVerifyChecker
from stepwiser.prompting.generation import Sample
from stepwiser.search.policy import (
    Solutions,
    accuracy,
    majority_shares,
    share_true,
    solution_voices,
)


def solutions(
    *answers: str, reference: str, outcomes: list[bool | None] | None = None
) -> Solutions:
    samples = [
        Sample((1, 2), rf"so \boxed{{{answer}}}", finish_reason="stop") for answer in answers
    ]
    return Solutions(Problem("p", "?", reference), samples, outcomes or [])


@pytest.fixture(scope="module")
def checker() -> Iterator[MathVerifyChecker]:
    checker = MathVerifyChecker()
    yield checker
    checker.close()


@pytest.mark.parametrize(
    ("exact", "shares"),
    [
        # One voice of three against two; as texts 2 has the most.
        (False, [1.0]),
        (True, [0.0]),
    ],
)
def test_a_majority_is_of_answers_that_are_the_same(
    checker: MathVerifyChecker, exact: bool, shares: list[float]
) -> None:
    asked: AnswerChecker = ExactChecker() if exact else checker
    found = [solutions("2", "0.5", r"\frac12", "2", "1/2", reference="0.5")]
    assert majority_shares(found, 5, asked, solution_voices(found, asked)) == shares


def test_groups_are_disjoint_and_what_cannot_be_checked_is_left_out(
    checker: MathVerifyChecker,
) -> None:
    found = [
        solutions("5 dollars", "5", "6", "7 cents", reference="5 cents"),
        solutions("5 dollars", "5 euros", "5 km", "5 m", reference="5 cents"),
    ]
    named = solution_voices(found, checker)
    first, second = majority_shares(found, 1, checker, named)
    assert first == pytest.approx(1 / 3)  # None, True, False, False
    assert math.isnan(second)


def test_what_was_not_checked_is_no_wrong_answer() -> None:
    assert share_true([True, None, False]) == 0.5
    assert math.isnan(share_true([None]))
    right = solutions("1", "2", reference="1", outcomes=[True, None])
    unknown = solutions("1", reference="1", outcomes=[None])
    result = accuracy([right, unknown, right])
    assert (result.mean, result.tokens) == (1.0, 2.0)
