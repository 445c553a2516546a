"""Answer checking: right, bounded in time, usable from any thread."""

import asyncio
import time

import pytest

from stepwiser.problems import ExactChecker, MathVerifyChecker, boxed_answer, unverifiable


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed{1} and then \boxed{2", "1"),
        ("nothing", None),
        (r"\boxed{", None),
    ],
)
def test_boxed_answer(text: str, answer: str | None) -> None:
    assert boxed_answer(text) == answer


def test_exact() -> None:
    assert ExactChecker().check("42", "42") is True
    assert ExactChecker().check("43", "42") is False
    assert ExactChecker().check(None, "42") is False


@pytest.fixture(scope="module")
def checker():
    checker = MathVerifyChecker(timeout_s=2.0)
    yield checker
    checker.close()


@pytest.mark.parametrize(
    ("answer", "reference", "verdict"),
    [
        ("0.5", r"\frac{1}{2}", True),
        ("1{,}000", "1000", True),
        ("7", "8", False),
        (None, "8", False),
    ],
)
def test_math_verify(checker, answer, reference, verdict) -> None:
    assert checker.check(answer, reference) is verdict


def test_math_verify_off_the_main_thread(checker) -> None:
    async def many() -> list[bool | None]:
        pairs = [(str(i), str(i % 2)) for i in range(4)]
        return await asyncio.gather(*(asyncio.to_thread(checker.check, *pair) for pair in pairs))

    assert asyncio.run(many()) == [True, True, False, False]


def test_a_hostile_answer_costs_its_timeout_and_the_next_check_works(checker) -> None:
    started = time.monotonic()
    verdict = checker.check("9^{9^{9^{9^{9}}}}", "9^{9^{9^{9^{8}}}}")
    assert verdict in (None, False)
    assert time.monotonic() - started < 60
    assert checker.check("0.25", r"\frac{1}{4}") is True


def test_unverifiable_references_are_found(checker) -> None:
    assert unverifiable(checker, ["12", ""]) == [1]
