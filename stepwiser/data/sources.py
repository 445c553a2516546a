"""Problems in: embedded, JSON lines, JSON, CSV, Parquet, a known name, or the Hub.

Rows that are of no use (no text, the same problem again, an answer that nothing could be checked
against) are counted and listed, and the rest goes on. A row that cannot be read is an error that
names it, its column and what to do, unless `data.skip_bad_rows` has it listed with the others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepwiser.config import DataConfig
from stepwiser.data.answers.boxes import boxed_answer, collection
from stepwiser.data.cells import answer_text, cell, has, problem_text
from stepwiser.data.files import (
    READERS,
    BadRow,
    FileRow,
    Rejected,
    checked,
    is_table,
    read_rows,
    rows_of,
)
from stepwiser.data.presets import with_preset
from stepwiser.data.records import Problem, content_id
from stepwiser.data.verifiers import AnswerChecker, unverifiable
from stepwiser.errors import UserError
from stepwiser.prompting.hub.datasets import find_dataset
from stepwiser.prompting.hub.reference import MAIN, HubModel


@dataclass(frozen=True)
class ProblemSet:
    """Usable problems, and the rows that were not."""

    problems: list[Problem]
    rejected: list[Rejected]
    rows: int = 0
    """Of the source, usable or not, looked at or not."""
    notices: tuple[str, ...] = ()
    """What else a person should know of the source."""


@dataclass(frozen=True)
class RawProblem:
    """Problem and answer of a row as they stand there, or why they cannot be read.

    The answer may be a whole solution: `reference_answer` finds its end.
    """

    row: FileRow
    question: str = ""
    answer: str = ""
    problem: str = ""


def load_problems(config: DataConfig, checker: AnswerChecker) -> ProblemSet:
    """Read, deduplicate, verify and shuffle.

    Raises UserError where the source does not exist, a column is missing, or nothing is usable.
    """
    if config.source == "embedded":
        made = _embedded(config)
        return ProblemSet(made, [], len(made))
    config = with_preset(config)
    return choose_problems(config, raw_problems(config), checker)


def choose_problems(
    config: DataConfig, rows: Sequence[RawProblem], checker: AnswerChecker
) -> ProblemSet:
    """The problems that a configuration asks for among the rows of its source, in shuffled order.

    Raises UserError where none is usable.
    """
    order = list(range(len(rows)))
    random.Random(config.seed).shuffle(order)
    chosen: list[Problem] = []
    rejected = [Rejected(raw.row.index, raw.problem) for raw in rows if raw.problem]
    seen: set[str] = set()
    wanted = config.offset + config.limit
    for index in order:
        if len(chosen) >= wanted:
            break
        if rows[index].problem:
            continue
        # Boxes are looked for in the rows that are needed: a data set may have a million others.
        question, answer = rows[index].question, reference_answer(config, rows[index].answer)
        reason = None
        if not question:
            reason = f"column {config.problem_column} is empty"
        elif question in seen:
            reason = "the same problem came before"
        elif unverifiable(checker, [answer]):
            reason = f"reference answer {answer!r} cannot be verified"
        if reason:
            rejected.append(Rejected(index, reason))
            continue
        seen.add(question)
        chosen.append(Problem(content_id(question, answer), question, answer))
    problems = chosen[config.offset : wanted]
    if not problems:
        reasons = sorted({r.reason for r in rejected})[:3]
        raise UserError(
            f"dataset {config.source} has no usable problem after offset {config.offset} "
            f"(of {len(rows)} rows, {len(rejected)} rejected: {reasons})"
        )
    return ProblemSet(problems, rejected, len(rows))


def raw_problems(config: DataConfig) -> list[RawProblem]:
    """Every row of a source but the embedded one, known names filled in (`with_preset`).

    Raises UserError where the source does not exist, a column is in no row, or a row cannot be read
    and is not to be skipped.
    """
    raw = [_raw(row, config) for row in _rows(config)]
    source = f"dataset {config.source}"
    checked(((r.row, r.problem) for r in raw), source, config.skip_bad_rows, "data.skip_bad_rows")
    return raw


def _raw(row: FileRow, config: DataConfig) -> RawProblem:
    if row.problem:
        return RawProblem(row, problem=row.problem)
    try:
        question = problem_text(cell(row.value, config.problem_column), config.problem_column)
        answer = answer_text(cell(row.value, config.answer_column), config.answer_column)
    except BadRow as error:
        return RawProblem(row, problem=str(error))
    return RawProblem(row, question.strip(), answer)


def reference_answer(config: DataConfig, answer: str) -> str:
    """The answer in a text of the answer column, which may hold a whole solution."""
    if config.answer_delimiter is not None:
        answer = answer.rpartition(config.answer_delimiter)[2]
    # Whole solutions (NuminaMath) hold their answer in a box, or in several side by side.
    return collection(boxed_answer(answer) or answer).strip()


def reference_answers(config: DataConfig) -> dict[str, str]:
    """Answers of a whole data set by problem text; none of the embedded one, which has no rows."""
    if config.source == "embedded":
        return {}
    config = with_preset(config)
    return {r.question: reference_answer(config, r.answer) for r in raw_problems(config)}


def _embedded(config: DataConfig) -> list[Problem]:
    from stepwiser.tasks import make_problems

    made = make_problems(config.offset + config.limit, config.seed)[config.offset :]
    return [Problem(content_id(p.question), p.question, p.answer) for p in made]


def _rows(config: DataConfig) -> list[FileRow]:
    path = Path(config.source).expanduser()
    if is_table(path):
        rows = read_rows(path)
    elif path.suffix.lower() in READERS:
        raise UserError(f"dataset file {path} does not exist")
    else:
        rows = _read_hub(config)
    if not rows:
        raise UserError(f"dataset {config.source} is empty")
    whole = [row for row in rows if not row.problem]
    for column in (config.problem_column, config.answer_column):
        if whole and not any(has(row.value, column) for row in whole):
            raise UserError(
                f"dataset {config.source} has no column {column!r}; it has "
                f"{sorted(map(str, whole[0].value))}: set data.problem_column and "
                "data.answer_column"
            )
    return rows


def hub_source(config: DataConfig) -> HubModel | None:
    """Name and revision of a source on the Hub; None for the embedded one and for files."""
    if config.source == "embedded":
        return None
    source = with_preset(config).source
    path = Path(source).expanduser()
    if is_table(path) or path.suffix.lower() in READERS:
        return None
    name, _, revision = source.partition("@")
    return HubModel(name, revision or MAIN)


def at_commit(config: DataConfig, commit: str) -> DataConfig:
    """The same source on the Hub at one commit."""
    source = hub_source(config)
    assert source is not None, "files have no commit"
    return with_preset(config).model_copy(update={"source": str(source.at(commit))})


def _read_hub(config: DataConfig) -> list[FileRow]:
    import datasets

    source = hub_source(config)
    assert source is not None, "a file was looked for before"
    found = find_dataset(source)
    if found.unheard:
        # The library would ask for minutes.
        datasets.config.HF_HUB_OFFLINE = True
    try:
        # The library looks for tables that it has made itself, not for what `hf download` fetched.
        if found.folder is not None:
            rows = datasets.load_dataset(str(found.folder), config.subset, split=config.split)
        else:
            at = found.commit or (None if source.revision == MAIN else source.revision)
            rows = datasets.load_dataset(
                source.name, config.subset, split=config.split, revision=at
            )
        return rows_of(rows)
    except Exception as error:  # the library raises a dozen unrelated types
        revised = "" if source.revision == MAIN else f" --revision {source.revision}"
        hint = (
            f"; {found.unheard}: run `hf download {source.name} --repo-type dataset{revised}` on "
            "this machine with network, or give a file as data.source"
            if found.unheard and found.folder is None
            else ""
        )
        raise UserError(
            f"dataset {config.source} (subset {config.subset}, split {config.split}) cannot be "
            f"loaded: {type(error).__name__}: {error}{hint}"
        ) from error
