r"""Final answers as text: what a response says in its boxes, and which references say nothing.

A response that ends in several boxes side by side (`\boxed{3}, \boxed{5}`) has two readings, the
set of all and the last alone. Which of them is meant hangs on the reference, so both are kept: such
an answer is the boxes themselves, and `collection` and `last_box` read it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TOKEN = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*\{|\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"\\(?:boxed|fbox)\s*(-?\d+(?:[.,/]\d+)*)")
"""TeX boxes the next token where there is no brace; a number is what a model means by that."""

_SEPARATOR = re.compile(
    r"(?:[\s$&]|\\[,;:! ]|\\quad|\\qquad|\\\(|\\\)|\\\[|\\\])*"
    r"(?:[,;]|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b)"
    r"(?:[\s$&,;]|\\[,;:! ]|\\quad|\\qquad|\\\(|\\\)|\\\[|\\\]"
    r"|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)*"
)
_EMPTY = re.compile(
    r"\\(?:text|mathrm|textbf|mathbf|mbox|displaystyle|quad|qquad|boxed|fbox)(?![A-Za-z])"
    r"|\\[,;:! ]|[\s{}$~*`_]"
)


class Box(NamedTuple):
    """A complete box of a response; positions in characters."""

    start: int
    end: int
    content: str


def boxes(response: str) -> list[Box]:
    r"""All complete `\boxed{…}` and `\fbox{…}` that hold something, in order of where they start.

    An escaped brace (`\}`) is a character like any other and closes nothing. Time is linear in the
    length of the response.
    """
    found: list[Box] = []
    open_braces: list[tuple[int, int] | None] = []
    for match in _TOKEN.finditer(response):
        token = match.group()
        if token == "{":
            open_braces.append(None)
        elif token == "}":
            if open_braces and (opened := open_braces.pop()):
                found.append(Box(opened[0], match.end(), response[opened[1] : match.start()]))
        elif token.endswith("{") and len(token) > 2:
            open_braces.append((match.start(), match.end()))
    found += (Box(m.start(), m.end(), m.group(1)) for m in _BARE.finditer(response))
    kept = [box._replace(content=box.content.strip()) for box in found if not blank(box.content)]
    return sorted(kept)


def boxed_answer(response: str) -> str | None:
    r"""Content of the last complete box that holds something; None without one.

    Boxes side by side, with nothing but commas, `and` or `or` between them, are one answer: it is
    given as `\boxed{3}, \boxed{5}, \boxed{7}`.
    """
    found = boxes(response)
    if not found:
        return None
    group = [found[-1]]
    for box in reversed(found[:-1]):
        between = response[box.end : group[0].start]
        if box.end > group[0].start or len(between) > 40 or not _SEPARATOR.fullmatch(between):
            break
        group.insert(0, box)
    contents = list(dict.fromkeys(box.content for box in group))
    return contents[0] if len(contents) == 1 else ", ".join(rf"\boxed{{{c}}}" for c in contents)


def collection(answer: str) -> str:
    r"""An answer without its boxes, all that they hold in a row: `3, 5, 7`."""
    found = boxes(answer)
    return ", ".join(box.content for box in found) if found else answer


def last_box(answer: str) -> str:
    """What the last box of an answer holds, or the answer that has none."""
    found = boxes(answer)
    return found[-1].content if found else answer


def is_collection(answer: str) -> bool:
    r"""Whether an answer names several things: `3, 5`, `\{1, 2\}`, `(1, 2)`, `\pm 3`."""
    inside = collection(answer)
    if len(boxes(answer)) > 1 or r"\pm" in inside or "±" in inside:
        return True
    if re.fullmatch(r"\$*\s*(?:\\left)?\s*\\?\{.*\\?\}\s*\$*", inside, re.DOTALL):
        return True
    without_thousands = re.sub(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))", "", inside)
    return bool(re.search(r"[,;]\s*\S|(?<![A-Za-z])(?:and|or)(?![A-Za-z])", without_thousands))


def blank(text: str) -> bool:
    r"""Whether a text shows nothing: spaces, empty braces, an empty `\text{}`."""
    return not _EMPTY.sub("", text)


_NOTHING_SAID = re.compile(
    r"(?:(?:the|final|correct|its|reference)\s+)*(?:answer|solution|result|value)?\s*(?:is|:|=|-)?\s*"
    r"(?:currently\s+|still\s+|yet\s+)?"
    r"(?:n\s*[/.\\]?\s*a\.?|nan|null|nil|none|unknown|not\s+known|missing|not?\s*found"
    r"|(?:is\s+)?not\s+(?:given|available|provided|applicable|specified|stated)"
    r"|(?:is\s+)?unavailable|unspecified|pending|omitted|tbd|tba|todo|to\s+be\s+determined"
    r"|no\s+(?:final\s+)?answer(?:\s+(?:given|provided|available|found))?|unknown\s+answer"
    r"|see\s+(?:the\s+)?(?:solution|above|below|proof|explanation)|(?:may\s+)?var(?:y|ies)"
    r"|answers?\s+(?:may\s+)?(?:vary|varies|unknown)|proof|placeholder|undisclosed)"
)


def says_nothing(reference: str) -> bool:
    r"""Whether a reference answer only marks that there is none: `?`, `N/A`, `…`, `unknown`.

    Answers that say that there is no solution (`\text{undefined}`, `no solution`, `\emptyset`) are
    answers.
    """
    if collection(reference).strip().strip("$") in ("{}", r"\{\}"):
        return False
    text = re.sub(r"\\(?:l|c|v)?dots(?![A-Za-z])", "", collection(reference))
    text = _EMPTY.sub(" ", text).strip()
    if not any(c.isalnum() or c in "+=<>≤≥≠∅∞±≈√∈" for c in text):
        return True
    bare = text.casefold().strip(" .!?…\"'()[]-–—#")
    if bare.startswith("<") and bare.endswith(">"):
        bare = bare[1:-1]
    return text != "Na" and bool(_NOTHING_SAID.fullmatch(bare))
