r"""Which answers are equal: exactly so, whatever the order, and None where nobody can say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from stepwiser.data.answers.equality import compare_texts
from stepwiser.data.answers.numbers import cleaned, read_number
from stepwiser.data.verifiers import MathVerifyChecker

DEADLINE_S = 5.0
SEVERAL = r"\boxed{3}, \boxed{5}, \boxed{7}"
NESTED = "(" * 800 + "5" + ")" * 800


@pytest.fixture(scope="module")
def checker() -> Iterator[MathVerifyChecker]:
    checker = MathVerifyChecker(DEADLINE_S)
    yield checker
    checker.close()


EQUAL = [
    *(("**73**", "73"), ("*73*", "73"), ("`73`", "73"), (r"\textbf{73}", "73"), ("$73$", "73")),
    *((r"\(73\)", "73"), ('"73"', "73"), ("73,", "73"), ("42.", "42"), ("1,234.", "1234")),
    *(("1{,}234", "1234"), (r"1\,234", "1234"), (r"1,\!234", "1234"), ("1 234", "1234")),
    *(("1_234", "1,234"), ("5 dollars", "5"), (r"\$5", "5"), (r"\$5", "5 dollars"), ("5€", "5")),
    *(("5 cm", "5"), (r"5\text{ cm}^2", "5"), ("5 cm²", r"5\text{ cm}^2"), ("5kg", "5")),
    *(("60 miles per hour", "60"), ("5 m/s", "5"), ("45°", "45"), (r"45^\circ", "45 degrees")),
    *(("The answer is 42", "42"), ("Total: 42 apples", "42"), ("5th", "5"), ("five", "5")),
    *(("5 million", "5000000"), ("two dozen", "2 dozen"), ("minus 5", "-5"), ("−5", "-5")),
    *(("73%", "73"), ("73%", "0.73"), (r"50\%", r"\frac12"), ("50 percent", "50%"), ("x=5", "5")),
    *(("0.5", r"\frac12"), ("0.5", "1/2"), ("½", "0.5"), ("2½", r"2\frac{1}{2}"), ("1 1/2", "1.5")),
    *(("1.5e10", r"1.5 \times 10^{10}"), ("1e-9", "0.000000001"), (r"0.\overline{3}", "1/3")),
    *(("0.333333", "1/3"), ("0.666667", "2/3"), ("0.30000000000000004", "0.3"), ("42.0", "42")),
    *(("1.41421356", r"\sqrt{2}"), ("6.283185307", r"2\pi"), ("0.333333x", r"\frac{x}{3}")),
    *(("14.0 - 1.0i", "14-i"), ("(1+i)^2", "2i"), ("i^2", "-1"), ("2.0i", "2i")),
    *(("1/2^{98}", "2^{-98}"), (r"\sqrt2", r"\sqrt{2}"), (r"\sqrt{8}", r"2\sqrt{2}")),
    *((r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}"), (r"\frac{\pi}{2}", r"0.5\pi")),
    *((r"3\pi \text{ cm}", r"3\pi"), ("2\\sqrt{3} meters", r"2\sqrt{3}"), ("5!", "120")),
    *(("x^2+2x+1", "(x+1)^2"), ("y=2x+1", "2x+1"), ("f(x)=x^2", "x^2"), ("2 + 3 = 5", "5")),
    *(("{1,2}", r"\{2,1\}"), ("{1,2}", "1, 2"), (r"\pm 3", "3, -3"), (r"\{\}", r"\emptyset")),
    *((r"[0.5,1]", r"[\frac12,1]"), ("1<x<2", "(1,2)"), ("(C)", "C"), (r"\text{(C)}", "C")),
    *((r"\begin{pmatrix}1\\0.5\end{pmatrix}", r"\begin{bmatrix}1\\\frac12\end{bmatrix}"),),
    *((r"\text{Friday}", "friday"), ("the cat", "Cat"), ("AB", "BA"), ("101_2", "101_{2}")),
    *((SEVERAL, r"\{3,5,7\}"), (SEVERAL, "7, 5, 3"), (SEVERAL, "7"), (r"\boxed{5}", "5")),
    *(("2t", "2t"), (r"e^{i\pi}", "-1"), (r"\infty", "infinity"), ("3:4", r"\frac34")),
    *(("x^2/x", "x"), ("3x-2x", "x"), ("x=x^2/x", "x")),
]
DIFFERENT = [
    *(("1/2^{98}", "1/2^{99}"), ("2^{-98}", "0"), (r"10^{300}+1", "10^{300}"), ("1e-9", "2e-9")),
    *((r"\sqrt{1+2^{-98}}", "1"), (r"\pi+10^{-40}", r"\pi"), ("2^{1/2^{98}}", "2^{1/2^{99}}")),
    *((r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}+10^{-40}"), ("x/2^{98}", "x/2^{99}")),
    *(("x+10^{-30}", "x"), ("{1/2^{98},1}", "{1/2^{99},1}"), ("x<1/2^{98}", "x<1/2^{99}")),
    *((r"(0,1/2^{98})", r"(0,1/2^{99})"), (r"1/2^{98}i", r"1/2^{99}i")),
    *((r"\begin{pmatrix}1\\2^{-98}\end{pmatrix}", r"\begin{pmatrix}1\\2^{-99}\end{pmatrix}"),),
    *(("12345678901234567890", "12345678901234567891"), ("0.0000001", "0.0000002")),
    *(("1234567.1", "1234567.2"), ("42.0000001", "42"), ("0.33", "1/3"), ("1.414", r"\sqrt2")),
    *(("1/3", "33333333/100000000"), ("1.5e10", "15000000001"), ("5 dollars", "6 dollars")),
    *(("5 dollars", "6"), ("42.", "43"), ("**73**", "37"), ("14.0 - 1.0i", "14+i"), ("3i", "3")),
    *(("5!", "5"), ("x=5", "y=5"), ("2t", "3t"), ("2t", "2c"), ("3 1/2", "2"), ("1 000", "0")),
    *(("listen", "silent"), ("Friday", "Monday"), ("yes", "no"), ("Friday", "5"), ("?", "5")),
    *(("N/A", "5"), ("(C)", "(D)"), ("(1,2)", "(2,1)"), ("(1,3)", "(1,3]"), ("5%", "6%")),
    *((SEVERAL, "3"), ("3, 5, 7", "7"), (SEVERAL, "3, 5"), ("12_8", "11"), ("y=2x+1", "2x+2")),
    *(("1 000", "1 000x"), ("1 1/2", "x/2"), ("1/2^{98}", "1/2^{98}+x"), ("0.5x", "0.5y")),
    *(("minus 5", "5"), ("5 million", "5"), ("−5", "5"), (r"-\infty", r"\infty"), ("-1", "1")),
]
OPEN = [
    *(("5 dollars", "5 cents"), ("5 km", "5000 m"), ("half of 5", "5"), ("at least 5", "5")),
    *(("not 5", "5"), ("5k", "5000"), ("5 m", "5"), ("12_8", "12"), ("12_8", "10")),
    *((NESTED, "5"), ("5/0", "0/0"), (r"\frac{1}{", "5"), ("0.333...", "0.333")),
    *(
        (r"3\pi \text{ cm}", r"3\pi \text{ km}"),
        ("no solution", r"\emptyset"),
        ("x+1", "x+1}y"),
        ("x" * 3000, "5"),
    ),
]


def _both_ways(checker: MathVerifyChecker, a: str, b: str) -> set[bool | None]:
    return {checker.check(a, b), checker.check(b, a)}


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal(checker: MathVerifyChecker, a: str, b: str) -> None:
    assert _both_ways(checker, a, b) == {True}


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different(checker: MathVerifyChecker, a: str, b: str) -> None:
    assert _both_ways(checker, a, b) == {False}


@pytest.mark.parametrize(("a", "b"), OPEN, ids=lambda text: text[:20])
def test_nobody_can_say(checker: MathVerifyChecker, a: str, b: str) -> None:
    assert _both_ways(checker, a, b) == {None}


HOSTILE = [
    *(NESTED, "9^{9^{9^{9^{9}}}}", "-" * 800 + "5", "5" + "!" * 800, "1+" * 900 + "1"),
    *(r"\sqrt" * 300 + "5", "x^" * 600 + "2", r"\binom{10^9}{10^8}", "|" * 900 + "x"),
    *("a" * 1990 + "=", "a b " * 400 + "1", "\\text{" * 49 + "x" + "}" * 49, " " * 1900 + "x"),
]


@pytest.fixture(scope="module")
def impatient() -> Iterator[MathVerifyChecker]:
    checker = MathVerifyChecker(timeout_s=1.0)
    yield checker
    checker.close()


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda text: text[:12])
def test_hostile_answers_end_in_time(impatient: MathVerifyChecker, answer: str) -> None:
    impatient.check("x", "2x")  # the process starts, which is no part of a check
    started = time.monotonic()
    assert impatient.check(answer, "y+5") in (None, False)
    assert time.monotonic() - started < 6  # a second, another of grace, and a busy machine


def test_what_cannot_be_read_is_counted_and_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    checker = MathVerifyChecker(timeout_s=2.0)
    try:
        for answer in (NESTED, r"\frac{1}{" + "(" * 45, "-" * 900 + "5", r"\sqrt" * 300):
            assert checker.check(answer, "5") is None
        assert checker.cannot_say.total() == 4
        assert checker.check("0.25x", r"\frac{x}{4}") is True
    finally:
        checker.close()
    assert capfd.readouterr() == ("", "")


# --- properties -----------------------------------------------------------------------------------

PIECES = [
    *("1", "2", "98", "0.5", "1,234", "-", "+", "/", "^", "{", "}", "(", ")", ",", "=", "x", "i"),
    *(r"\frac", r"\sqrt", r"\pi", r"\text{", " cm", "%", r"\$", " dollars", ".", r"\boxed{", "_"),
    *(" or ", "<", "!", "…", "²", "½", "٣", "**", "é", "\\", "\n", r"\left", "10", "e", "|"),
]
texts = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
numbers = st.fractions(max_denominator=10**9)


@given(texts, texts)
@settings(max_examples=400, deadline=None)
def test_texts_compare_alike_both_ways(a: str, b: str) -> None:
    assert compare_texts(a, a).verdict is True
    there, back = compare_texts(a, b), compare_texts(b, a)
    assert (there.verdict, there.final) == (back.verdict, back.final)
    assert there.texts == back.texts[::-1]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.sampled_from(EQUAL))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_equality_is_reflexive_symmetric_and_bounded(
    checker: MathVerifyChecker, text: str, pair: tuple[str, str]
) -> None:
    started = time.monotonic()
    assert checker.check(text, text) is True
    assert checker.check(text, pair[0]) is checker.check(pair[0], text)
    assert time.monotonic() - started < 2 * (DEADLINE_S + 4)


@given(numbers, numbers)
@settings(deadline=None)
def test_fractions_are_equal_when_they_are(a: Fraction, b: Fraction) -> None:
    texts = [f"{x.numerator}/{x.denominator}" for x in (a, b)]
    assert compare_texts(*texts).verdict is (a == b)
    tex = rf"\frac{{{b.numerator}}}{{{b.denominator}}}"
    assert compare_texts(texts[0], tex).verdict is (a == b)


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**6))
@settings(deadline=None)
def test_integers_are_never_rounded(number: int, apart: int) -> None:
    assert compare_texts(f"{number:,}", str(number)).verdict is True
    assert compare_texts(f"{number:,}", str(number + apart)).verdict is False
    assert compare_texts(f"**{number} apples**", f"${number}$.").verdict is True


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6), numbers)
@settings(deadline=None)
def test_a_decimal_is_no_further_than_its_last_place(decimal: object, number: Fraction) -> None:
    a = Fraction(str(decimal))
    assume(a != number)
    verdict = compare_texts(f"{decimal:f}", f"{number.numerator}/{number.denominator}").verdict
    if verdict:
        assert abs(a - number) < Fraction(1, 10**6)
        assert abs(a - number) <= max(abs(a), abs(number)) / 10**6


@given(st.text(max_size=60))
@settings(deadline=None)
def test_reading_never_raises(text: str) -> None:
    read_number(cleaned(text))
    assert cleaned(cleaned(text)) == cleaned(text)
