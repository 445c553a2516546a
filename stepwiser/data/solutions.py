"""Solutions to be judged, from a file: labelled or not, in steps or whole.

| a row has | is |
|---|---|
| labelled steps of any format (`step_formats`) | its steps; the labels are kept beside |
| a problem (`problem`, `question` ...) and `steps`, `completions`, `chunks` ... | its steps |
| a problem and a text (`response`, `solution`, `completion` ...) or messages | to be cut |

All rows are of the format of the first one that can be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stepwiser.data.cells import ASSISTANT, answer_text, array, message, problem_text, text, truth
from stepwiser.data.cells import steps as steps_of
from stepwiser.data.files import BadRow, FileRow, is_table, read_rows
from stepwiser.data.labelled_solution import NAMES
from stepwiser.data.step_formats import ANSWERS, CORRECT, PROBLEM, STEPS, format_of
from stepwiser.data.step_items import labelled_solutions, notice_of, own_names
from stepwiser.errors import UserError

IN_STEPS = (*STEPS, "chunks")
WHOLE = ("response", "solution", "completion", "output", "text")


@dataclass(frozen=True)
class FileSolution:
    """A solution as a file gives it; ``steps``, or a ``response`` that is to be cut."""

    row: FileRow
    name: str
    """The row's id, or its number."""
    problem: str
    steps: list[str] | None = None
    response: str | None = None
    answer: str | None = None
    """The problem's reference answer."""
    final_answer_correct: bool | None = None
    first_wrong: int | None = None
    """What the file's labels say: a step's index, -1 where none is wrong."""


@dataclass(frozen=True)
class SolutionFile:
    """Solutions in file order, and the rows that cannot be read, with why."""

    solutions: list[FileSolution]
    bad: list[tuple[FileRow, str]]
    notices: tuple[str, ...] = ()
    """What a person should know of the ids."""


def read_solutions(path: Path) -> SolutionFile:
    """Raises UserError where the file does not exist, is empty, or has no solutions in it."""
    if not is_table(path):
        raise UserError(f"{path} does not exist: give a file with solutions, one a row")
    rows = read_rows(path)
    if not rows:
        raise UserError(f"{path} is empty: give a file with solutions, one a row")
    whole = [row.value for row in rows if not row.problem]
    if format_of(whole) is not None:
        found, bad = _labelled(rows, str(path))
    else:
        found, bad = _plain(rows)
    if not found:
        raise UserError(
            f"{path}: none of {len(rows)} rows can be judged: {bad[0][0].says(bad[0][1])}"
        )
    names, twice = own_names([one.name for one in found])
    notices = (notice_of(twice, "solutions"),) if twice else ()
    return SolutionFile(
        [replace(one, name=name) for one, name in zip(found, names, strict=True)], bad, notices
    )


def _labelled(
    rows: list[FileRow], source: str
) -> tuple[list[FileSolution], list[tuple[FileRow, str]]]:
    _, read = labelled_solutions(rows, source)
    found = [
        FileSolution(
            row,
            one.solution_id or f"row-{row.index}",
            one.problem,
            one.written or one.steps,
            answer=one.answer,
            final_answer_correct=one.correct,
            first_wrong=one.label,
        )
        for row, one, _ in read
        if one is not None
    ]
    return found, [(row, why) for row, one, why in read if one is None]


def _plain(rows: list[FileRow]) -> tuple[list[FileSolution], list[tuple[FileRow, str]]]:
    found: list[FileSolution] = []
    bad: list[tuple[FileRow, str]] = []
    for row in rows:
        try:
            if row.problem:
                raise BadRow(row.problem)
            found.append(_solution(row))
        except BadRow as error:
            bad.append((row, str(error)))
    return found, bad


def _solution(row: FileRow) -> FileSolution:
    value = row.value
    asked, said = _first(value, PROBLEM), _first(value, (*IN_STEPS, *WHOLE))
    if asked is None or said is None:
        raise BadRow(
            f"no {'problem' if asked is None else 'solution'} among its columns "
            f"{sorted(map(str, value))}; a row needs a problem ({', '.join(PROBLEM)}) and its "
            f"steps ({', '.join(IN_STEPS[:3])}) or its text ({', '.join(WHOLE[:3])})"
        )
    problem = problem_text(value[asked], asked)
    if not problem.strip():
        raise BadRow(f"column {asked} is empty")
    steps, response = _steps_or_text(value[said], said)
    name, answer, correct = (_first(value, names) for names in (NAMES, ANSWERS, CORRECT))
    return FileSolution(
        row,
        (text(value[name], name) if name else "") or f"row-{row.index}",
        problem,
        steps,
        response,
        answer_text(value[answer], answer) or None if answer else None,
        truth(value[correct], correct) if correct and value[correct] is not None else None,
    )


def _steps_or_text(value: Any, column: str) -> tuple[list[str] | None, str | None]:
    if isinstance(value, str) and not (column in IN_STEPS and value.lstrip().startswith("[")):
        return None, text(value, column)
    values = array(value, column, "steps")
    if not any(isinstance(one, Mapping) for one in values):
        return steps_of(values, column), None
    turns = [message(one, column) for one in values]
    written = [words for role, words in turns if role == ASSISTANT]
    if len(written) != 1:
        raise BadRow(
            f"column {column} holds {len(written)} turns of an assistant; a solution is one"
        )
    return None, written[0]


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of the columns that a row has."""
    return next((name for name in names if name in row), None)
