"""Solutions that are shown to a judge step by step, in messages: GenPRM's data and RLHFlow's.

A row has `conversations` (or `messages`) of which a user's message is a step, the first with the
problem before it, and the assistant's after it a verdict: GenPRM's boxed Yes or No between
<output> tags, with its reasons before them, RLHFlow's + or -.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stepwiser.data.cells import array, shown, text
from stepwiser.data.files import BadRow
from stepwiser.data.labelled_solution import NAMES, WORDS, LabelledSolution, first_wrong

COLUMNS = ("conversations", "messages", "conversation")
_OUTPUT = re.compile(r"<output>(.*?)(?:</output>|$)", re.DOTALL)
_BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*(Yes|No)\b", re.IGNORECASE)
_FIRST_STEP = re.compile(r"\s*\bStep 1\b\s*[:.]")
_NUMBERED = re.compile(r"^\s*Step \d+\s*[:.]\s*")


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Whether a row holds messages, and an assistant's among them that is a verdict."""
    messages = row.get(_column(row))
    if not isinstance(messages, list):
        return False
    said = [m.get("content") for m in messages if isinstance(m, Mapping) and _is(m, "assistant")]
    return any(isinstance(content, str) and _verdict(content) is not None for content in said)


def labelled_conversation(row: Mapping[str, Any], rated: bool) -> LabelledSolution:
    """A solution as it was shown, and judged up to the last message of the judge.

    Raises BadRow: messages that do not take turns, an assistant's without a verdict, a first one
    from which the problem cannot be told.
    """
    column = _column(row)
    steps: list[str] = []
    labels: list[bool] = []
    for number, message in enumerate(array(row.get(column), column, "messages")):
        where = f"{column}, message {number}"
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise BadRow(f"column {where} is {shown(message)}: a message has a role and a content")
        content = text(message["content"], where)
        if _is(message, "system") and not steps:
            continue
        if _is(message, "user") and len(steps) == len(labels):
            steps.append(content)
        elif _is(message, "assistant") and len(steps) == len(labels) + 1:
            verdict = _verdict(content)
            if verdict is None:
                raise BadRow(
                    f"column {where} ends with no verdict (+ or -, or <output> with a boxed Yes or "
                    f"No): {shown(content[-60:])}"
                )
            labels.append(verdict)
        else:
            raise BadRow(
                f"column {where} is of role {shown(message['role'])}, out of turn: after a user's "
                "step comes the assistant's verdict"
            )
    if not labels:
        raise BadRow(f"column {column} holds no step with a verdict")
    problem, first = _problem(steps[0], column)
    written = [first, *(_NUMBERED.sub("", step).strip() for step in steps[1:])]
    name = next((name for name in NAMES if name in row), "")
    return LabelledSolution(
        problem,
        written[: len(labels)],
        first_wrong(labels),
        correct=None,
        solution_id=text(row[name], name) or None if name else None,
        written=written if len(written) > len(labels) else None,
    )


def _column(row: Mapping[str, Any]) -> str:
    return next((name for name in COLUMNS if name in row), COLUMNS[0])


def _is(message: Mapping[str, Any], role: str) -> bool:
    return message.get("role") == role


def _verdict(content: str) -> bool | None:
    """What an assistant's message says of the step before it."""
    if content.strip() in ("+", "-"):
        return WORDS[content.strip()]
    boxed = [verdict for output in _OUTPUT.findall(content) for verdict in _BOXED.findall(output)]
    return boxed[-1].lower() == "yes" if boxed else None


def _problem(first: str, column: str) -> tuple[str, str]:
    """The problem and the first step of the first message.

    RLHFlow numbers its steps; GenPRM has an empty line, which no step of it has inside.
    """
    if found := _FIRST_STEP.search(first):
        problem, step = first[: found.start()], first[found.end() :]
    else:
        problem, _, step = first.rstrip().rpartition("\n\n")
    problem = problem.strip().removeprefix("Question:").strip()
    if not problem or not step.strip():
        raise BadRow(
            f"column {column}: the first user's message does not show where the problem ends (an "
            f"empty line, or 'Step 1:'): {shown(first[:60])}"
        )
    return problem, step.strip()
