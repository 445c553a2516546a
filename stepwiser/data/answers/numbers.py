r"""One number in an answer, with the unit or the words around it, read exactly and without SymPy.

Most answers are a number. Reading them here costs microseconds, needs no worker process, and is
exact: integers, fractions and decimals are `Fraction`s, and a decimal keeps how far it was written
out. What is not one number is for `equality`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from stepwiser.data.answers.unit_words import (
    CHANGES,
    FILLERS,
    LETTERS_OF_UNITS,
    MATHS,
    MONEY,
    SAME_UNIT,
    SCALES,
    SHORT_UNITS,
    WORD_NUMBERS,
)

LONGEST = 200
"""Characters of what is tried as a number; what is longer is none that a person wrote."""

RELATIVE = Fraction(1, 10**6)
"""How far a decimal may be from what it stands for, as a share of it."""

NOISE = Fraction(1, 10**12)
"""The same where a decimal has more places than a float holds (0.30000000000000004)."""


@dataclass(frozen=True)
class Number:
    """A number and what stands around it."""

    value: Fraction
    places: Fraction | None = None
    """Worth of the last place of a decimal; None for what is written exactly."""
    percent: bool = False
    unit: frozenset[str] = frozenset()
    letter: str = ""
    """A lone letter after it: a unit, a thousand, or a variable."""
    unclear: bool = False
    """Words around it may change its value (`half of 5`)."""

    @property
    def tex(self) -> str:
        r"""The same in the plainest TeX: `-5`, `\frac{1}{2}`, `0.25\%`, `5 \text{cm}`."""
        if self.places is not None:
            digits = len(str(self.places.denominator)) - 1
            scaled = str(abs(self.value) * 10**digits).zfill(digits + 1)
            text = f"{scaled[:-digits]}.{scaled[-digits:]}"
        elif self.value.denominator == 1:
            text = str(abs(self.value))
        else:
            text = rf"\frac{{{abs(self.value).numerator}}}{{{self.value.denominator}}}"
        sign = "-" if self.value < 0 else ""
        unit = rf" \text{{{' '.join(sorted(self.unit))}}}" if self.unit else ""
        return sign + text + (r"\%" if self.percent else "") + unit


def same_value(a: Fraction, b: Fraction, places: Fraction | None, decimal: bool) -> bool:
    """Exact equality, or where one is a decimal, equality as far as it was written out.

    Args:
        a: one number.
        b: the other.
        places: worth of the last place of the coarser decimal, where that is known.
        decimal: whether one of the two was written as a decimal.
    """
    if a == b:
        return True
    if not decimal:
        return False
    apart, size = abs(a - b), max(abs(a), abs(b))
    return apart <= RELATIVE * size and (places is None or apart < places or apart <= NOISE * size)


def compare_numbers(a: Number, b: Number) -> bool | None:
    """Whether both are the same number; None where their words leave that open.

    A unit on one side only is taken to be meant on the other; two different ones are not compared.
    """
    coarser = max(filter(None, (a.places, b.places)), default=None)
    decimal = coarser is not None
    equal = same_value(a.value, b.value, coarser, decimal)
    if a.percent != b.percent:
        part, whole = (a, b) if a.percent else (b, a)
        scaled = part.places / 100 if part.places else None
        places = max(filter(None, (scaled, whole.places)), default=None)
        equal = equal or same_value(part.value / 100, whole.value, places, decimal)
    if a.unclear or b.unclear:
        return None
    if a.unit and b.unit and not (a.unit <= b.unit or b.unit <= a.unit):
        return None
    return equal


_UNICODE = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "﹣": "-", "－": "-", "⁄": "/", "’": "'"}
    | {"×": r"\times ", "·": " "}
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
)
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5",
    "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
_WRAPPED = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|underline|emph|mbox"
    r"|hbox|boxed|fbox|ensuremath)\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}"
)
_FENCES = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("__", "__"),
           ("*", "*"), ("_", "_"), ("``", "``"), ("`", "`"), ('"', '"'), ("“", "”"))  # fmt: skip


def cleaned(text: str) -> str:
    """An answer without what only sets it off: markup, fences, a full stop, odd spaces."""
    text = text.translate(_UNICODE)
    text = _SUPERSCRIPT.sub(lambda m: f"^{{{m.group().translate(_LOWERED)}}}", text)
    for sign, plain in _VULGAR.items():
        if sign in text:
            text = re.sub(rf"(\d)\s*{sign}", rf"\1 {plain}", text).replace(sign, plain)
    text = re.sub(r"\\(?:displaystyle|textstyle|large|Large|bf|rm)(?![A-Za-z])", "", text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text).replace(r"\!", "")
    text = re.sub(r"\\[dt]?binom ?(\d) ?(\d)", r"\\binom{\1}{\2}", text)
    before = None
    while before != text:
        before = text
        text = " ".join(_trimmed(text).split())
    return text


def _trimmed(text: str) -> str:
    """One round of taking off what stands around the whole text."""
    text = text.strip(" \t\r\n\u200b\ufeff")
    if text.endswith((".", ",", ";", ":")) and not text.endswith(("..", r"\,", r"\;", r"\:")):
        text = text[:-1]
    for left, right in _FENCES:
        inner = text[len(left) : -len(right)]
        fenced = text.startswith(left) and text.endswith(right) and left not in inner
        if fenced and inner.strip() and (right[0] == "\\" or not inner.endswith("\\")):
            text = inner
    wrapped = _WRAPPED.fullmatch(text)
    return wrapped.group(1) if wrapped else text


_INTEGER = r"(?:\d{1,3}(?:(?:,|\{,\}| )\d{3})+(?!\d)|\d+(?:_\d{3})+(?!\d)|\d+)"
_PLAIN = rf"(?:{_INTEGER}(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    r"(?P<sign>[-+] ?)?(?:"
    r"(?P<head>\d*)\.(?P<once>\d*)\\overline ?\{ ?(?P<again>\d+) ?\}"
    r"|(?:(?P<whole>\d+) ?)?\\frac ?(?:\{ ?(?P<a>-?\d+) ?\}|(?P<b>\d)) ?"
    r"(?:\{ ?(?P<c>-?\d+) ?\}|(?P<d>\d))"
    rf"|(?:(?P<units>\d+) )?(?P<top>{_INTEGER}) ?/ ?(?P<bottom>{_INTEGER})(?![\d.])"
    rf"|(?P<plain>{_PLAIN})(?:(?: ?(?:\\times|\\cdot|\*|x) ?10 ?(?:\^|\*\*) ?(?:\{{ ?)?"
    r"(?P<tens>[-+]?\d+)(?: ?\})?)|[eE](?P<e>[-+]?\d+))?"
    r")"
)
_PERCENT = re.compile(r" ?(?:%|percent(?:age)?(?: points?)?|per cent|pct)(?!\w)")
_WORD = re.compile("[A-Za-z\ue000-\ue009][A-Za-z\ue000-\ue009'-]*")


def read_number(text: str) -> Number | None:
    """The one number of a `cleaned` answer with its unit or words; None where it is not that."""
    if len(text) > LONGEST:
        return None
    text, money = _flattened(text)
    found = list(_NUMBER.finditer(text))
    if not found:
        return _number_word(text)
    if len(found) > 1 or len(money) > 1:
        return None
    (match,) = found
    value = _value(match)
    before, after = text[: match.start()], text[match.end() :]
    if value is None or re.search(r"[A-Za-z\\_^)}]$", before) or re.match(r"[_^!(\\{]", after):
        return None
    return _with_words(value, before, after, money)


def _flattened(text: str) -> tuple[str, frozenset[str]]:
    """Units as plain words: without TeX around them, powers as single characters; and the money."""
    text = re.sub(r"(?:\^ ?\{? ?\\(?:circ|degree) ?\}?|°|\\degree(?![A-Za-z]))", " degree ", text)

    def plain(wrapped: re.Match[str]) -> str:
        inner = wrapped.group(1).strip()
        # A lone letter is a variable in mathematics, but a unit in \text{}.
        return f" {inner}\ue001 " if len(inner) == 1 and inner.isalpha() else f" {inner} "

    text = _WRAPPED.sub(plain, text)
    text = re.sub(
        r"([A-Za-z]{2}|\ue001) ?\^ ?\{? ?([-+]?\d) ?\}?",
        lambda m: m.group(1) + chr(0xE000 + abs(int(m.group(2)))),
        text,
    )
    text = re.sub(r"\\[,;: ]|\\q?quad(?![A-Za-z])|[~\u00a0\u2009\u202f]", " ", text)
    text = text.replace(r"\$", "$").replace(r"\%", "%").replace("US$", "$")
    money = frozenset(MONEY[sign] for sign in MONEY if sign in text)
    text = re.sub("[$€£¥₹] ?", "", text) if sum(map(text.count, MONEY)) == 1 else text
    return " ".join(text.split()), money


def _value(match: re.Match[str]) -> tuple[Fraction, Fraction | None] | None:
    """A match of `_NUMBER` as a number and the worth of its last place."""
    part = match.groupdict()
    places = None
    if part["again"]:
        once, again = part["once"], part["again"]
        unit = Fraction(1, 10 ** len(once))
        value = Fraction(int((part["head"] or "0") + once)) * unit
        value += unit * Fraction(int(again), 10 ** len(again) - 1)
    elif part["plain"]:
        digits = re.sub(r"[{} ,_]", "", part["plain"])
        exponent = int(part["tens"] or part["e"] or 0)
        if abs(exponent) > 1000:
            return None
        value = Fraction(digits.rstrip(".") or "0") * Fraction(10) ** exponent
        if value.denominator > 1 and "." in digits:  # a whole number is meant as it is
            places = Fraction(10) ** (exponent - len(digits.partition(".")[2]))
    else:
        over = re.sub(r"[{} ,_]", "", part["a"] or part["b"] or part["top"])
        under = re.sub(r"[{} ,_]", "", part["c"] or part["d"] or part["bottom"])
        if not int(under):
            return None
        value = int(part["whole"] or part["units"] or 0) + Fraction(int(over), int(under))
    return (-value if (part["sign"] or "").startswith("-") else value), places


def _with_words(
    number: tuple[Fraction, Fraction | None], before: str, after: str, money: frozenset[str]
) -> Number | None:
    value, places = number
    if ordinal := re.match(r"(?:st|nd|rd|th)(?![A-Za-z])", after):
        after = after[ordinal.end() :]
    percent = bool(share := _PERCENT.match(after))
    after = after[share.end() :] if share else after
    if sign := re.search(r"(?:^| )(?:minus|negative) $", before):
        value, before = -value, before[: sign.start()]
    if re.sub(r"[ .,:/']", "", _WORD.sub("", before)) or ".." in after:
        return None
    if re.sub(r"[ .,']", "", _WORD.sub("", re.sub(r"(?<=[^\W\d])/(?=[^\W\d])", " ", after))):
        return None
    close = after[:1].isalpha()
    words = _WORD.findall(after)
    while not close and words and (scale := SCALES.get(words[0].lower())):
        value, places = value * scale, None
        words = words[1:]
    if "/" in after and len(words) > 1 and all(w in LETTERS_OF_UNITS | SHORT_UNITS for w in words):
        return Number(value, places, percent, frozenset({"/".join(words), *money}))
    if len(words) == 1 and len(words[0]) == 1:
        known = words[0] in LETTERS_OF_UNITS and not before
        return Number(value, places, percent, letter=words[0]) if known else None
    if close and words and not (len(words[0]) > 3 or words[0].lower() in SHORT_UNITS):
        return None
    return _classified(Number(value, places, percent), _WORD.findall(before), words, money)


def _classified(
    number: Number, before: list[str], after: list[str], money: frozenset[str]
) -> Number | None:
    """The number with its unit; None where a word is mathematics."""
    unit, unclear = set(money), False
    for place, word in enumerate([*before, *after]):
        name = word.lower()
        if name in MATHS:
            return None
        if name in FILLERS and not (name == "in" and after == [word]):
            continue
        if len(name) == 1:
            if place < len(before):  # the name of what the number is
                continue
            return None
        if name in CHANGES or not (len(name) > 3 or name in SHORT_UNITS or name[-1] >= "\ue000"):
            unclear = True
        elif place >= len(before):
            unit.add(_singular(name))
    return Number(number.value, number.places, number.percent, frozenset(unit), unclear=unclear)


def _singular(unit: str) -> str:
    name = unit.rstrip("\ue001")
    power = name[len(name.rstrip("".join(map(chr, range(0xE000, 0xE00A))))) :]
    name = name[: len(name) - len(power)]
    if name not in SAME_UNIT and len(name) > 3 and name.endswith("s") and not name.endswith("ss"):
        name = name[:-3] + "y" if name.endswith("ies") else name[:-1]
    return SAME_UNIT.get(name, name) + power


def _number_word(text: str) -> Number | None:
    """`five`, `twelve apples`: a text without digits that starts with the word for a number."""
    words = _WORD.findall(text)
    if re.sub(r"[\s.,']", "", _WORD.sub("", text)):
        return None
    while words and words[0].lower() in FILLERS:
        words = words[1:]
    value = WORD_NUMBERS.get(words[0].lower()) if words else None
    if value is None:
        return None
    words = words[1:]
    while words and (scale := SCALES.get(words[0].lower())):
        value, words = value * scale, words[1:]
    return _classified(Number(Fraction(value)), [], words, frozenset())
