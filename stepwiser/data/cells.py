"""What a cell of a row says: a text, an answer, a truth value, steps.

JSON and CSV say the same thing in several ways (`true`, `1`, `"True"`); each is read by what it
means. What cannot be read is refused with the column and the value, and never turned into a text of
Python's (`"['a']"`) or a false one into nothing (`0`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from stepwiser.data.files import BadRow

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ROLES = {
    "user": USER,
    "human": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "model": ASSISTANT,
    "system": SYSTEM,
    "developer": SYSTEM,
}
"""Names that data sets have for whose turn a message is."""

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def cell(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a path `a.b` (`a.0` in a list) where no column is called so.

    Raises BadRow where there is none, naming what there is.
    """
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise BadRow(f"no column {column!r}; it has {sorted(map(str, row))}")
    return value


def has(row: Mapping[str, Any], column: str) -> bool:
    """Whether `cell` has an answer."""
    try:
        cell(row, column)
    except BadRow:
        return False
    return True


def text(value: Any, column: str, hint: str = "") -> str:
    """A text; nothing (`null`) is the empty one, and a number or truth value is as JSON writes it.

    A whole number that a column of decimals made `3.0` is `3`.

    Raises BadRow for an array or an object.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return _valid(value, column)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Decimal):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""  # what a table without a value has in a column of numbers
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    raise BadRow(f"column {column} holds {shown(value)}, not a text{hint}")


def _valid(value: str, column: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(
            f"column {column} holds half of a character (a lone surrogate) at position "
            f"{error.start}"
        ) from error
    return value


def answer_text(value: Any, column: str) -> str:
    """A reference answer. Raises BadRow for a nested one, with the paths that lead into it."""
    parts: list[str] = []
    if isinstance(value, Mapping):
        parts = [f"{column}.{key}" for key in value]
    elif isinstance(value, list):
        parts = [f"{column}.{index}" for index in range(len(value))]
    hint = f": set data.answer_column to a path into it ({', '.join(parts[:4])})" if parts else ""
    return text(value, column, hint)


def problem_text(value: Any, column: str) -> str:
    """A problem: a text, or messages whose one user turn it is.

    The policy is asked with the run's own template (prompts.policy), so a system message of the
    data set, which says how to answer, is left out, and so is an assistant's, which answers. A
    conversation with several user turns is no single problem.

    Raises BadRow for anything else, messages with pictures among it.
    """
    if not isinstance(value, list):
        return text(value, column, ": set data.problem_column to a path into it, such as a.b")
    turns = [message(one, column) for one in value]
    asked = [words for role, words in turns if role == USER]
    if len(asked) != 1:
        raise BadRow(
            f"column {column} holds messages with {len(asked)} user turns; a problem is one"
        )
    return asked[0]


def message(value: Any, column: str) -> tuple[str, str]:
    """Role and text of a message: `role` and `content`, or `from` and `value`."""
    for role, content in (("role", "content"), ("from", "value")):
        if isinstance(value, Mapping) and role in value and content in value:
            name = ROLES.get(str(value[role]).lower())
            if name is None:
                raise BadRow(f"column {column} holds a message of the role {shown(value[role])}")
            return name, _content(value[content], column)
    raise BadRow(f"column {column} holds a list of {shown(value)}; messages have role and content")


def _content(value: Any, column: str) -> str:
    if not isinstance(value, list):
        return text(value, column)
    words = []
    for part in value:
        if isinstance(part, str):
            words.append(part)
        elif isinstance(part, Mapping) and part.get("type", "text") == "text" and "text" in part:
            words.append(text(part["text"], column))
        else:
            raise BadRow(f"column {column} holds a message with {shown(part)}; only text is read")
    return "".join(words)


def truth(value: Any, column: str) -> bool:
    """A truth value: true, false, 1, 0, yes or no, as a text too.

    Raises BadRow for anything else, nothing (`null`) among it.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in TRUTH:
        return TRUTH[value.strip().lower()]
    raise BadRow(f"column {column} is {shown(value)}, not a truth value: true or false")


def whole(value: Any, column: str) -> int:
    """A whole number, as a text too. Raises BadRow for anything else."""
    if isinstance(value, str):
        try:
            value = int(value.strip())
        except ValueError:
            raise BadRow(f"column {column} is {shown(value)}, not a whole number") from None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadRow(f"column {column} is {shown(value)}, not a whole number")
    return value


def array(value: Any, column: str, of: str) -> list[Any]:
    """A list; in CSV it is JSON's text of one. Raises BadRow for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow(f"column {column} is {shown(value)}, no list of {of}") from None
    if not isinstance(value, list):
        raise BadRow(f"column {column} is {shown(value)}, not a list of {of}")
    return value


def steps(value: Any, column: str) -> list[str]:
    """Texts of steps. Raises BadRow for a text, an empty list, and what is no text in it."""
    found = array(value, column, "steps")
    for index, step in enumerate(found):
        if not isinstance(step, str | int | float):
            raise BadRow(f"column {column}, step {index}: {shown(step)} is not a text")
    return [text(step, column) for step in found]


def shown(value: Any) -> str:
    """A value for a message: short, as JSON has it where it can."""
    try:
        words = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        words = f"a value of type {type(value).__name__}"
    words = words.encode("utf-8", "replace").decode()
    return words if len(words) <= 60 else words[:57] + "..."
