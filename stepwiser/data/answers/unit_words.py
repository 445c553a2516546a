"""Words that stand around a number in an answer, by what they do to it."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILLERS = _words(
    "a about all altogether amount an and answer approximately are around at be costs each "
    "equals exactly final for gets has have he hence her his in is it its just needs of on only "
    "our per result roughly she so solution sum that the their there therefore they thus to "
    "total value was we were which will would"
)
"""Leave a number as it is and name no unit."""

CHANGES = _words(
    "above any below between billions crore cubed divided double dozens eight eighth eighths "
    "either every except factorial fewer fifth fifths five four fourth fourths greater half "
    "halves hundreds hundredth hundredths infinitely lakh larger least less millions minus "
    "modulo more most multiplied negative neither never nine no not one or over permille plus "
    "power quarter quarters remainder root score seven six sixth sixths smaller squared ten "
    "tenth tenths than third thirds thousands thousandth thousandths three times trillions "
    "triple twice two under up without"
)
"""May make another number of it: what they come to is not worked out here."""

MATHS = _words(
    "alpha arccos arcsin arctan beta cos cosh cot csc deg delta det dim exp frac gamma gcd inf "
    "infinity infty lambda lcm ln log max min mod omega pi sec sigma sin sinh sqrt tan tanh "
    "theta"
)
"""Names of functions and constants, which are mathematics and no words."""

SHORT_UNITS = _words(
    "atm bag bags box boys bus cal car cars cat cats cl cm cow cows cup cups day days dl dm dog "
    "dogs egg eggs eur ft gb gbp hat hats hen hens hr hrs hz in inr jar jars kb kg kids km kmh "
    "kph kw lb lbs man mb men mg mi mins ml mm mol mph ms mw oz pen pens pig pigs pts rad secs "
    "toy toys unit usd way ways yd year yr yrs"
)
"""Units and things of two and three letters; others so short may be a product of variables."""

LETTERS_OF_UNITS = frozenset("mgshlLtdcAVWJNKCFkMBT")
"""A lone letter of these after a number: a unit, a thousand, or a variable."""

SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
           "trillion": 10**12}  # fmt: skip

SAME_UNIT = {
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km",
    "kilometre": "km", "millimeter": "mm", "millimetre": "mm", "kilogram": "kg", "gram": "g",
    "hour": "h", "hr": "h", "second": "s", "sec": "s", "minute": "min", "foot": "ft", "feet": "ft",
    "inches": "inch", "pound": "lb", "lbs": "lb", "usd": "dollar", "children": "child",
    "men": "man", "people": "person", "boxes": "box", "yr": "year", "deg": "degree",
}  # fmt: skip
"""One name for the ways to write a unit; plurals in `s` are undone before."""

MONEY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}

WORD_NUMBERS = {
    word: value
    for value, word in enumerate(
        (
            *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
            *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"),
            *("seventeen", "eighteen", "nineteen", "twenty"),
        )
    )
}
