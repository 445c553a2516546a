r"""Whether two final answers are the same, as far as text and plain numbers decide it.

What is left is mathematics: `symbolic` asks Math-Verify about it in a worker process. The order of
two answers changes nothing here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from stepwiser.data.answers.boxes import blank, collection, is_collection, last_box
from stepwiser.data.answers.numbers import Number, cleaned, compare_numbers, read_number
from stepwiser.data.answers.unit_words import MATHS

LONGEST = 2000
"""Characters of an answer that is read as mathematics."""

DEEPEST = 50
"""Nested brackets of one; parsers recurse, and people do not write more."""


class Compared(NamedTuple):
    """What is known of two answers."""

    verdict: bool | None
    """True, False, or None for "cannot say"."""
    final: bool = True
    """Whether that is all; else `texts` are to be compared as mathematics."""
    texts: tuple[str, str] = ("", "")
    reason: str = "words, units or bases leave it open"
    """Why the verdict is None."""


def compare_texts(answer: str, reference: str) -> Compared:
    """Compare two answers without SymPy; linear in their length."""
    if answer.strip() == reference.strip():
        return Compared(True)
    if _too_much(answer) or _too_much(reference):
        return Compared(None, reason="longer or deeper than is read")
    reading = collection if is_collection(answer) and is_collection(reference) else last_box
    a, b = cleaned(reading(answer)), cleaned(reading(reference))
    if _same_text(a, b):
        return Compared(True)
    if _is_empty(a) or _is_empty(b):
        return Compared(False)
    (name_a, a), (name_b, b) = _named(a), _named(b)
    if name_a and name_b and name_a != name_b:
        return Compared(False)
    if _same_text(a, b):
        return Compared(True)
    m, n = read_number(a), read_number(b)
    if m is not None and n is not None:
        if not (m.letter and n.letter):
            return Compared(_with_letters(m, n))
    elif (m or n) is not None and (m or n).unclear:  # type: ignore[union-attr]
        return Compared(None)
    if (based := _in_bases(a, b)) is not None:
        return based
    if is_words(a) or is_words(b):
        if _letters(a) == _letters(b):
            return Compared(True)
        if is_words(a) and is_words(b):
            return Compared(False)
        return Compared(False if m or n else None)
    # The library would take 1 000 for 1 times 0, and 1 1/2 for a product too.
    return Compared(None, False, (_plain(m, a), _plain(n, b)))


def _plain(number: Number | None, text: str) -> str:
    return number.tex if number is not None and not number.letter else text


def readable_at_once(reference: str) -> bool | None:
    """Whether answers can be compared with this one; None where the mathematics must be parsed."""
    if _too_much(reference):
        return False
    text = cleaned(last_box(reference))
    number = read_number(_named(text)[1])
    if number is not None:
        return not number.unclear
    return True if is_words(text) else None


def is_words(text: str) -> bool:
    """Whether an answer is a word or several, not a product of variables."""
    runs = re.findall(r"[^\W\d_]+", text)
    if re.search(r"[\\^_={}<>+*/|\d]", text) or any(run.lower() in MATHS for run in runs):
        return False
    if len(runs) > 1 and all(len(run) > 1 for run in runs):
        return True
    return any(len(run) > 3 or (not run.isascii() and len(run) > 1) for run in runs)


def _letters(text: str) -> str:
    """A text's words alone; case and an article make no difference."""
    words = re.findall(r"\w+", text.casefold())
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("the", "a", "an") else words)


def _too_much(text: str) -> bool:
    if len(text) > LONGEST:
        return True
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(depth, deepest)
        elif character in ")]}":
            depth -= 1
    return deepest > DEEPEST


def _same_text(a: str, b: str) -> bool:
    """Spaces mean nothing beside anything but letters and digits."""
    return a == b or re.sub(r"\s*(\W)\s*", r"\1", a) == re.sub(r"\s*(\W)\s*", r"\1", b)


def _is_empty(text: str) -> bool:
    """`?` and `…` are no answers, whatever the question; `\\{\\}` is one."""
    if text in ("{}", r"\{\}"):
        return False
    return blank(text) or not any(c.isalnum() or c in "+=<>≤≥≠∅∞±≈√∈" for c in text)


_ARITHMETIC = r"(?:\\(?:frac|times|cdot|sqrt|left|right|div)(?![A-Za-z])|[\d\s.+*/^(){}-])+"


def _named(text: str) -> tuple[str, str]:
    """`x = 5` as x and 5, `2 + 3 = 5` as 5.

    Words before an equals sign name nothing that could differ.
    """
    if re.search(r"[<>≤≥≠,;]|\\(?:neq?|leq?|geq?|approx|in|begin)(?![A-Za-z])", text):
        return "", text
    first, *between, last = [p.strip() for p in text.split("=")] if "=" in text else [text, ""]
    if not first or not last or any(map(is_collection, between)):
        return "", text
    name = re.fullmatch(r"(?:\\text ?\{[^{}]*\}|\\?[A-Za-z]|[ .:])+", first)
    arithmetic = re.fullmatch(_ARITHMETIC, first)
    if not (name or arithmetic):
        return "", text
    variable = re.fullmatch(r"[A-Za-z]|\\(?!text)[A-Za-z]+", first)
    return (first if variable else ""), cleaned(last)


def _with_letters(a: Number, b: Number) -> bool | None:
    """Compare numbers of which one may be followed by a lone letter."""
    if a.letter == b.letter:
        return compare_numbers(a, b)
    open_value = (a.letter or b.letter) in "kKMBT" or a.unit or b.unit
    return None if open_value or compare_numbers(a, b) is not False else False


_BASED = re.compile(r"\(?([0-9A-Za-z]+)\)? ?_ ?\{? ?(\d{1,2}) ?\}?")


def _in_bases(a: str, b: str) -> Compared | None:
    r"""Numbers with a base: `101_2`, `12_{8}`, which Math-Verify would read without it."""
    found = [_BASED.fullmatch(text) for text in (a, b)]
    if not any(found):
        return None
    digits = [match.group(1) if match else text for match, text in zip(found, (a, b), strict=True)]
    if all(found) and found[0].group(2) == found[1].group(2):  # type: ignore[union-attr]
        return Compared(digits[0].lstrip("0").upper() == digits[1].lstrip("0").upper())
    if not all(d.isalnum() and d.isascii() and d[0].isdigit() for d in digits):
        return None  # x_2 is a variable
    values = []
    for match, text in zip(found, digits, strict=True):
        base = int(match.group(2)) if match else 10
        try:
            values.append(int(text, base))
        except ValueError:
            return Compared(None)
    # The same digits without a base, or the same number in another one: the problem says which
    # of them it wants.
    return Compared(None if values[0] == values[1] or digits[0] == digits[1] else False)
