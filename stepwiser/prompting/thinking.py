"""Where a model's thinking ends and its answer begins.

A thinking model opens its answer with a block between markers, or its chat template writes the
opening marker for it. What stands in the block is no answer: a chunk, a verdict or a box in there
is one that the model considers. A marker further on in an answer is plain text.
"""

from __future__ import annotations

import re

MARKERS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
}
"""Opening to closing marker, as the model families write them."""

UNFINISHED = "thinking never ends"
"""Reason of a response without an end of its thinking."""

_OPENING = re.compile(r"\s*(" + "|".join(map(re.escape, MARKERS)) + ")")
_OPENS = re.compile("(" + "|".join(map(re.escape, MARKERS)) + r")\s*\Z")
_ANY = re.compile("|".join(map(re.escape, [*MARKERS, *MARKERS.values()])))


def opening_marker(text: str) -> re.Match[str] | None:
    """The marker that a text begins with, white space aside: group 1."""
    return _OPENING.match(text)


def open_at_end(prompt: str) -> str:
    """What of a prompt's end opens a block that the answer goes on with; empty if nothing does."""
    found = _OPENS.search(prompt)
    return found.group() if found else ""


def may_open(text: str) -> bool:
    """Whether text to come may turn this beginning of a text into an opening marker."""
    start = text.lstrip()
    return any(marker.startswith(start) for marker in MARKERS if marker != start)


def answer_start(text: str) -> int | None:
    """Characters before the answer: 0 without thinking, None where the thinking never ends.

    A closing marker that none opened closes what the prompt has opened.
    """
    if opening := opening_marker(text):
        closing = MARKERS[opening[1]]
        end = text.find(closing, opening.end())
        return None if end < 0 else end + len(closing)
    first = _ANY.search(text)
    return first.end() if first and first.group() not in MARKERS else 0


def is_unfinished(text: str) -> bool:
    """Whether the text ends while its writer still thinks."""
    return answer_start(text) is None


def answer_of(text: str) -> str:
    """What is said after the thinking; nothing where it never ends."""
    start = answer_start(text)
    return "" if start is None else text[start:]


def thoughts_of(text: str) -> str:
    """What stands in the block at the beginning, markers aside."""
    start = answer_start(text)
    head = text if start is None else text[:start]
    return _ANY.sub("", head).strip() if start != 0 else ""
