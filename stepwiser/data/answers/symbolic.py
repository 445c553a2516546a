r"""Math-Verify about two answers, made exact; for the worker processes of `verifiers` only.

Math-Verify (0.9) reads LaTeX well and knows how sets, intervals, equations and matrices are to be
compared. Its innermost comparison of two expressions is not exact: it cuts numbers below 1e-15 to
zero and rounds decimals to six places, whatever their size. That function is replaced here;
everything around it is the library's.
"""

from __future__ import annotations

import re
from typing import Any

import sympy
from math_verify import grader, verify
from math_verify.parser import NormalizationConfig, normalize_latex, parse_latex_cached
from sympy.core.function import AppliedUndef

from stepwiser.data.answers.numbers import RELATIVE, read_number

DIGITS = 1000
"""Digits to which two closed forms must agree to be one number."""

POINTS = tuple(sympy.Rational(p, q) for p, q in ((617, 389), (1009, 823), (211, 947), (-577, 401)))
"""Where expressions with variables are compared; each variable takes them in turn."""

_READING = NormalizationConfig(
    basic_latex=True,
    units=False,  # these are read by us: the library takes the t of 2t for one
    malformed_operators=True,
    nits=True,
    boxed="none",
)


class CannotSay(BaseException):
    """Not to be caught by the library, which makes False of every exception."""


def same_mathematics(answer: str, reference: str) -> bool | None:
    """Compare two answers as mathematics: True, False, or None where either cannot be read.

    Raises whatever SymPy and the library raise, and never returns for some expressions: call it
    under a deadline.
    """
    (a, unit_a), (b, unit_b) = _without_unit(answer), _without_unit(reference)
    if unit_a and unit_b and unit_a != unit_b:
        return None
    left, right = _parsed(a), _parsed(b)
    if not left or not right:
        return None
    if any(x is sympy.zoo or x is sympy.nan for x in (left[0], right[0])):
        return None
    try:
        verdicts = {_verify(left, right)}
        if not (isinstance(left[0], sympy.Expr) and isinstance(right[0], sympy.Expr)):
            # The library lets the form of the reference decide; where that matters, nobody knows.
            verdicts.add(_verify(right, left))
    except CannotSay:
        return None
    return verdicts.pop() if len(verdicts) == 1 else None


def is_readable(text: str) -> bool:
    """Whether an answer can be read as mathematics; raises as `same_mathematics` does."""
    return bool(_parsed(_without_unit(text)[0]))


def _verify(gold: list[Any], other: list[Any]) -> bool:
    return bool(
        verify(gold, other, timeout_seconds=None, raise_on_error=True, allow_set_relation_comp=True)
    )


def _parsed(text: str) -> list[Any]:
    if re.search(r"\d ?_", text) or "..." in text:
        return []  # read as if that were not there
    # 1.0i is a number and a variable called i to the parser, unless they stand apart.
    text = re.sub(r"(?<=[\d.}])i(?![A-Za-z])", " i", text)
    if not _braces_pair(text):
        return []
    try:
        # Not by `parse`, which looks for anything in a text that can be read, and so finds 73 in
        # what it cannot read as a whole.
        return [parse_latex_cached(normalize_latex(text, _READING))]
    except Exception:  # whatever the parser could not make sense of
        return []


def _braces_pair(text: str) -> bool:
    depth = 0
    for token in re.findall(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(token, 0)
        if depth < 0:
            return False
    return depth == 0


def _without_unit(text: str) -> tuple[str, frozenset[str]]:
    r"""An expression and the unit behind it: `3\pi \text{ cm}^2`, `2\sqrt{3} meters`."""
    power = r"(?: ?\^ ?\{? ?-?\d ?\}?)?"
    end = re.search(rf"\\(?:text|mathrm|mbox) ?\{{[^{{}}]*\}}{power}$", text)
    if end is None:
        end = re.search(rf"(?<=[\d}}) ])[A-Za-z]{{2,}}(?:[ /][A-Za-z]{{2,}})*{power}$", text)
        if end is None:
            return text, frozenset()
    before = text[: end.start()].strip()
    counted = read_number(f"1 {end.group()}") if re.search(r"[\w})]$", before) else None
    # `7 \text{ or }` and `3\pi \text{ million}` end in no unit.
    if counted is None or counted.unclear or counted.value != 1 or counted.percent:
        return text, frozenset()
    return before, counted.unit


def same_expression(a: Any, b: Any, float_rounding: int = 0, numeric_precision: int = 0) -> bool:
    """Whether two expressions are equal: exactly, or as far as their decimals go.

    In the place of Math-Verify's `sympy_numeric_eq`, hence the precisions, which are not used.
    Raises CannotSay where it cannot be found out.
    """
    if isinstance(a, sympy.MatrixBase) or isinstance(b, sympy.MatrixBase):
        if not (isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase)):
            return False
        pairs = zip(a.flat(), b.flat(), strict=True) if a.shape == b.shape else [(0, 1)]
        return all(same_expression(sympy.sympify(x), sympy.sympify(y)) for x, y in pairs)
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
        return bool(a == b)
    left, right = grader.get_pct_val(a), grader.get_pct_val(b)
    if (left is None) != (right is None):  # 9% is 9 as well as 0.09
        bare = (left, b) if left is not None else (a, right)
        if _same_value(*bare):
            return True
    return _same_value(a, b)


def _same_value(a: Any, b: Any) -> bool:
    try:
        decimal = a.has(sympy.Float) or b.has(sympy.Float)
        a, b = _exact(a), _exact(b)
        if a == b:
            return True
        if {a, b} & {sympy.zoo, sympy.nan}:
            raise CannotSay
        symbols = sorted(a.free_symbols | b.free_symbols, key=str)
        return _same_function(a, b, symbols, decimal) if symbols else _same_number(a, b, decimal)
    except (ArithmeticError, AttributeError, TypeError, ValueError, NotImplementedError) as error:
        raise CannotSay from error


def _exact(expression: Any) -> Any:
    """Evaluated, with decimals as fractions, and variables that are the same by name."""
    expression = expression.doit().replace(
        lambda e: isinstance(e, AppliedUndef), lambda e: sympy.Symbol(str(e))
    )
    names = {
        s: sympy.I if s.name == "i" else sympy.Symbol(s.name, real=True)
        for s in expression.free_symbols
    }
    floats = {f: sympy.Rational(str(f)) for f in expression.atoms(sympy.Float)}
    return expression.xreplace({**names, **floats}).doit()


def _same_number(a: Any, b: Any, decimal: bool) -> bool:
    if a.is_Rational and b.is_Rational and not decimal:
        return bool(a == b)
    if a.is_infinite or b.is_infinite:
        return bool(a == b)
    apart = a - b
    # SymPy adds digits until the first ones are certain, or there are DIGITS of them.
    value = apart.evalf(15, maxn=DIGITS)
    if not value.is_number or value.has(sympy.nan, sympy.zoo):
        raise CannotSay
    parts = [p for p in value.as_real_imag() if (p.is_Float and p._prec > 1) or p.is_Integer]
    if all(p == 0 for p in parts):
        return True
    if not decimal:
        return False
    size = max(abs(a.evalf(15)), abs(b.evalf(15)))
    return bool(abs(value) <= (1 + 1e-9) * float(RELATIVE) * size)


def _same_function(a: Any, b: Any, symbols: list[Any], decimal: bool) -> bool:
    """Equal wherever both are defined, by values at a few odd points; then by simplification."""
    equal = 0
    for shift in range(len(POINTS)):
        point = {s: POINTS[(i + shift) % len(POINTS)] + i for i, s in enumerate(symbols)}
        x, y = a.subs(point).doit(), b.subs(point).doit()
        if x.has(sympy.nan, sympy.zoo, sympy.oo) or y.has(sympy.nan, sympy.zoo, sympy.oo):
            continue
        if not (x.is_number and y.is_number):
            return _simplified(a - b)
        if not _same_number(x, y, decimal):
            return False
        equal += 1
    return equal > 1 or _simplified(a - b)


def _simplified(apart: Any) -> bool:
    zero = sympy.simplify(apart).is_zero
    if zero is None:
        raise CannotSay
    return bool(zero)


def _same_symbol(gold: Any, other: Any) -> bool:
    """The library compares a lone variable by name alone, and so takes 3x - 2x for another."""
    if _library_same_symbol(gold, other):
        return True
    mixed = isinstance(gold, sympy.Symbol) is not isinstance(other, sympy.Symbol)
    return mixed and same_expression(gold, other)


_library_same_symbol = grader.sympy_compare_symbols
grader.sympy_compare_symbols = _same_symbol
grader.sympy_numeric_eq = same_expression
grader.sympy_symbolic_eq = lambda a, b: False
