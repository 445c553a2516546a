"""Solutions in steps that somebody labelled, in the formats that people have them in.

| format | a row has |
|---|---|
| ProcessBench | `problem`, `steps`, `label` (first wrong step, -1 none), `final_answer_correct` |
| PRM800K | `question` (`problem` ...) and `label` (`steps` with rated `completions`) |
| Math-Shepherd | `input` with a tag after each step, `label` with + or - in the tag's place |
| PRMBench | `modified_question`, `modified_process`, `error_steps`, `classification` |
| an export of ours | `problem`, `steps`, `labels`, `values`, ... (`stepwiser export --format hf`) |
| labelled steps | a problem, steps, and a label of each (TRL, Skywork, GenPRM ...) |

All become a `LabelledSolution`: the label of a solution is its first wrong step. What comes after a
first wrong step has no label that counts, save in PRMBench. The format of a file is that of its
first row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepwiser.data.cells import array, cell, problem_text, shown, text, truth, whole
from stepwiser.data.cells import steps as steps_of
from stepwiser.data.files import BadRow
from stepwiser.data.labelled_solution import (
    NAMES,
    STEP_TAG,
    WORDS,
    LabelledSolution,
    first_wrong,
)
from stepwiser.data.prmbench import is_prmbench, read_prmbench
from stepwiser.data.step_conversations import is_conversation, labelled_conversation

OPENR_MARK = "\n" * 5

PROBLEM = ("problem", "question", "prompt", "query")
STEPS = ("steps", "completions", "process", "solution_steps", "reasoning_steps")
LABELS = ("labels", "ratings", "step_labels", "label", "rating", "hard_labels")
SCORES = ("scores", "step_scores", "rewards", "step_rewards")
"""Of a judge, from 0 to 1."""
RIGHT_FROM = 0.5
CORRECT = ("final_answer_correct", "is_correct", "correct")
ANSWERS = ("answer", "reference_answer", "ground_truth", "gold_answer")
PARTS = (("text", "step", "content"), ("label", "rating", "correct"))
"""Columns of one meaning, the first that a row has counts; the last of a step that is an object."""


@dataclass(frozen=True)
class StepFormat:
    """How to tell a format, and how to read a row of it (raises BadRow)."""

    name: str
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], bool], LabelledSolution]
    """``rated``: labels of the file are ratings, -1 wrong, 0 neutral, 1 right."""
    repeats_rows: bool = False
    """Rows of one id are one row that is there again, not several solutions."""
    says_what_is_missing: bool = False
    """``read`` names the columns that a row of it lacks."""

    def solution(self, row: Mapping[str, Any], rated: bool) -> LabelledSolution:
        """A row of the file. Raises BadRow where it is of another format or cannot be read."""
        if not self.says_what_is_missing and not self.fits(row):
            raise BadRow(
                f"it is not in the format of the first row, {self.name}; it has "
                f"{sorted(map(str, row))}"
            )
        return self.read(row, rated)


def format_of(rows: Sequence[Mapping[str, Any]]) -> StepFormat | None:
    """The format of a file's first row; None for what has no labelled steps."""
    return next((one for one in FORMATS if rows and one.fits(rows[0])), None)


def are_ratings(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether 0 is neutral in a file of labelled steps: where -1 says wrong, and 1 right."""
    found: set[Any] = set()
    for row in rows:
        _, labels = _labels_column(row)
        values = labels if isinstance(labels, list) else []
        found.update(v for v in values if isinstance(v, int) and not isinstance(v, bool))
    return -1 in found


# --- ProcessBench ---------------------------------------------------------------------------------


def _is_processbench(row: Mapping[str, Any]) -> bool:
    label = row.get("label")
    return "steps" in row and "label" in row and not isinstance(label, list | Mapping)


def _processbench(row: Mapping[str, Any], rated: bool) -> LabelledSolution:
    missing = {"id", "problem", "steps", "label", "final_answer_correct"} - row.keys()
    if missing:
        raise BadRow(f"missing {sorted(missing)}; it has {sorted(map(str, row))}")
    steps, label = steps_of(row["steps"], "steps"), whole(row["label"], "label")
    _has_steps(steps, "steps")
    if not -1 <= label < len(steps):
        raise BadRow(
            f"column label is {label}, and there are {len(steps)} steps: it is the first wrong "
            "one's index from 0, or -1"
        )
    return LabelledSolution(
        problem_text(row["problem"], "problem"),
        steps,
        label,
        truth(row["final_answer_correct"], "final_answer_correct"),
        _named(row),
        _optional(row, ANSWERS),
        text(row.get("generator"), "generator"),
    )


# --- PRM800K --------------------------------------------------------------------------------------


def _is_prm800k(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("question"), Mapping) and isinstance(row.get("label"), Mapping)


def _prm800k(row: Mapping[str, Any], rated: bool) -> LabelledSolution:
    """The path that was labelled: of each step the completion that was chosen, or written by hand.

    A row that its labeler gave up, or whose problem is bad, has no end that says anything.
    """
    question, label = row["question"], row["label"]
    reason = label.get("finish_reason")
    if reason not in (None, "solution", "found_error"):
        raise BadRow(f"column label.finish_reason is {shown(reason)}: nobody finished labelling it")
    steps: list[str] = []
    labels: list[bool] = []
    for index, step in enumerate(array(label.get("steps"), "label.steps", "steps")):
        where = f"label.steps.{index}"
        chosen, right = _chosen(step, where)
        steps.append(text(cell(chosen, "text"), f"{where}.text"))
        labels.append(right)
        if not right:
            break
    _has_steps(steps, "label.steps")
    wrong = first_wrong(labels)
    if reason == "found_error" and wrong == -1:
        raise BadRow("column label.finish_reason is found_error, and no step is rated -1")
    # What was labelled ends with the first wrong step, and has no final answer of its own then.
    return LabelledSolution(
        problem_text(cell(question, "problem"), "question.problem"),
        steps,
        wrong,
        wrong == -1,
        answer=_optional(question, ("ground_truth_answer",)),
        generator=text(row.get("generation"), "generation"),
    )


def _chosen(step: Any, where: str) -> tuple[Mapping[str, Any], bool]:
    """The completion that the labelled path goes on with, and whether it is not wrong."""
    if not isinstance(step, Mapping):
        raise BadRow(f"column {where} is {shown(step)}, not an object")
    written = step.get("human_completion")
    chosen = step.get("chosen_completion")
    completions = [
        one
        for one in array(step.get("completions") or [], f"{where}.completions", "completions")
        if isinstance(one, Mapping)
    ]
    if chosen is not None:
        index = whole(chosen, f"{where}.chosen_completion")
        if not 0 <= index < len(completions):
            raise BadRow(
                f"column {where}.chosen_completion is {index}, of {len(completions)} completions"
            )
        return completions[index], _not_wrong(completions[index], where)
    if isinstance(written, Mapping):
        return written, True  # written because none of the others was right
    if not completions:
        raise BadRow(f"column {where} has no completion")
    # Nobody went on from here: the path ends with the first one that was rated.
    return completions[0], _not_wrong(completions[0], where)


def _not_wrong(completion: Mapping[str, Any], where: str) -> bool:
    rating = completion.get("rating")
    if rating is None:
        raise BadRow(f"column {where} has a completion without a rating")
    return whole(rating, f"{where}.rating") >= 0


# --- Math-Shepherd --------------------------------------------------------------------------------


def _is_shepherd(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("input"), str) and isinstance(row.get("label"), str)


def _shepherd(row: Mapping[str, Any], rated: bool) -> LabelledSolution:
    """The last step's mark is whether its final answer is right: nothing is left to be sampled."""
    whole_text, marked = text(row["input"], "input"), text(row["label"], "label")
    *pieces, rest = whole_text.split(STEP_TAG)
    if not pieces or rest.strip():
        raise BadRow(
            f"column input does not end its steps with {STEP_TAG}: {shown(whole_text[-40:])}"
        )
    labels: list[bool] = []
    at = 0
    for piece in pieces:
        mark = marked[at + len(piece) : at + len(piece) + 1]
        if marked[at : at + len(piece)] != piece or mark not in ("+", "-"):
            raise BadRow(
                f"column label is not the text of input with + or - for each {STEP_TAG}: it differs"
                f" in step {len(labels)}"
            )
        labels.append(mark == "+")
        at += len(piece) + 1
    problem, found, first = pieces[0].rpartition("Step 1:")
    if not found:
        raise BadRow("column input has no 'Step 1:' where the problem ends")
    steps = [first, *(re.sub(r"^\s*Step \d+:", "", piece) for piece in pieces[1:])]
    return LabelledSolution(
        problem.strip(),
        [step.strip() for step in steps],
        first_wrong(labels),
        labels[-1],
        _named(row),
        _optional(row, ANSWERS),
        text(row.get("task"), "task"),
    )


# --- an export of ours ----------------------------------------------------------------------------


def _is_export(row: Mapping[str, Any]) -> bool:
    return row.keys() >= {"trajectory_id", "problem", "steps", "labels", "values"}


def _export(row: Mapping[str, Any], rated: bool) -> LabelledSolution:
    """Steps from the first one without a label on are left to `written`, unless one before is
    wrong: what comes after that has no label that counts."""
    written = steps_of(row["steps"], "steps")
    labels: list[bool] = []
    for index, value in enumerate(array(row["labels"], "labels", "labels")[: len(written)]):
        if value is None:
            break
        labels.append(truth(value, f"labels, step {index}"))
    if not labels:
        raise BadRow("column labels has none for the first step")
    wrong = first_wrong(labels)
    return LabelledSolution(
        problem_text(row["problem"], "problem"),
        written[: len(labels)] if wrong == -1 else written,
        wrong,
        truth(row.get("correct"), "correct"),
        text(row["trajectory_id"], "trajectory_id") or None,
        _optional(row, ANSWERS),
        written=written,
    )


# --- labelled steps -------------------------------------------------------------------------------


def _is_labelled(row: Mapping[str, Any]) -> bool:
    found, steps = _column(row, STEPS)
    return bool(found) and isinstance(steps, list | str) and bool(_labels_column(row)[0])


def _labelled(row: Mapping[str, Any], rated: bool) -> LabelledSolution:
    asked, problem = _column(row, PROBLEM)
    column, written = _column(row, STEPS)
    if not asked or not column:
        raise BadRow(f"no problem or no steps among its columns {sorted(map(str, row))}")
    parts = _split(written) if isinstance(written, str) else array(written, column, "steps")
    if isinstance(parts, str):
        parts = array(parts, column, "steps")
    steps = steps_of([_part(part, PARTS[0]) for part in parts], column)
    _has_steps(steps, column)
    name, values = _labels_column(row)
    values = array(values, name or "labels", "labels")
    if len(values) != len(steps):
        raise BadRow(f"column {name} has {len(values)} labels for {len(steps)} steps")
    labels = [_verdict(value, rated, f"{name}, step {i}") for i, value in enumerate(values)]
    said, correct = _column(row, CORRECT)
    wrong = first_wrong(labels)
    return LabelledSolution(
        problem_text(problem, asked),
        steps,
        wrong,
        truth(correct, said) if said and correct is not None else None,
        _named(row),
        _optional(row, ANSWERS),
        text(row.get("generator"), "generator"),
    )


def _split(written: str) -> list[str] | str:
    """Steps of a text with a mark after each of them, as OpenR has them; the text without one."""
    mark = next((mark for mark in (STEP_TAG, OPENR_MARK) if mark in written), None)
    if mark is None:
        return written
    return [step.strip() for step in written.removesuffix(mark).split(mark)]


def _labels_column(row: Mapping[str, Any]) -> tuple[str, Any]:
    """Name and values of the labels: a column of them, or a part of every step."""
    name, values = _column(row, (*LABELS, *SCORES))
    if name:
        return name, values
    column, parts = _column(row, STEPS)
    if column and isinstance(parts, list) and all(isinstance(part, Mapping) for part in parts):
        key = next((key for key in PARTS[1] if all(key in part for part in parts)), "")
        if key and parts:
            return f"{column}.{key}", [part[key] for part in parts]
    return "", None


def _part(part: Any, names: Sequence[str]) -> Any:
    if not isinstance(part, Mapping):
        return part
    found, value = _column(part, names)
    if not found:
        raise BadRow(f"a step has none of {', '.join(names)}; it has {sorted(map(str, part))}")
    return value


def _verdict(value: Any, rated: bool, column: str) -> bool:
    """Whether a label says that a step is right, or a judge's score that it is likelier so."""
    if column.partition(",")[0] in SCORES:
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise BadRow(f"column {column} is {shown(value)}: a score lies between 0 and 1")
        return value >= RIGHT_FROM
    if isinstance(value, str) and value.strip().lower() in WORDS:
        return WORDS[value.strip().lower()]
    if rated and value in (-1, 0, 1) and not isinstance(value, bool):
        return bool(value >= 0)
    try:
        return truth(value, column)
    except BadRow:
        raise BadRow(
            f"column {column} is {shown(value)}: a label is true or false, + or -, 1 or 0, or a "
            "rating 1, 0 or -1"
        ) from None


# --- what they share ------------------------------------------------------------------------------


def _column(row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    """The first of the columns that a row has, and its value; empty where it has none."""
    return next(((name, row[name]) for name in names if name in row), ("", None))


def _has_steps(steps: Sequence[str], column: str) -> None:
    if not steps:
        raise BadRow(f"column {column} holds no step")


def _named(row: Mapping[str, Any]) -> str | None:
    name, value = _column(row, NAMES)
    return text(value, name) or None if name else None


def _optional(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    name, value = _column(row, names)
    return text(value, name) or None if name else None


FORMATS = (
    StepFormat("PRM800K", _is_prm800k, _prm800k),
    StepFormat("Math-Shepherd", _is_shepherd, _shepherd),
    StepFormat("a conversation about steps", is_conversation, labelled_conversation),
    StepFormat("ProcessBench", _is_processbench, _processbench, says_what_is_missing=True),
    StepFormat("PRMBench", is_prmbench, read_prmbench, repeats_rows=True),
    StepFormat("an export of ours", _is_export, _export),
    StepFormat("labelled steps", _is_labelled, _labelled),
)
"""In the order in which they are tried; a further format needs an entry here and nothing else."""
