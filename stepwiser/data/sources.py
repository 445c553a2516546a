"""Problems and ProcessBench items in: embedded, JSON lines, Parquet, or the Hub.

Bad rows are counted and listed, and the rest goes on; a bad dataset is an error that names what is
missing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwiser.config import DataConfig
from stepwiser.data.answers import boxed_answer, collection
from stepwiser.data.records import Problem, StepItem, content_id
from stepwiser.data.verifiers import AnswerChecker, unverifiable
from stepwiser.errors import UserError


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, and why."""

    row: int
    reason: str


@dataclass(frozen=True)
class ProblemSet:
    """Usable problems, and the rows that were not."""

    problems: list[Problem]
    rejected: list[Rejected]


def load_problems(config: DataConfig, checker: AnswerChecker) -> ProblemSet:
    """Read, deduplicate, verify and shuffle.

    Raises UserError where the source does not exist, a column is missing, or nothing is usable.
    """
    if config.source == "embedded":
        return ProblemSet(_embedded(config), [])
    rows = _rows(config)
    order = list(range(len(rows)))
    random.Random(config.seed).shuffle(order)
    chosen: list[Problem] = []
    rejected: list[Rejected] = []
    seen: set[str] = set()
    wanted = config.offset + config.limit
    for index in order:
        if len(chosen) >= wanted:
            break
        row = rows[index]
        question = str(row[config.problem_column] or "").strip()
        answer = reference_answer(config, row[config.answer_column])
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
    return ProblemSet(problems, rejected)


def reference_answer(config: DataConfig, cell: object) -> str:
    """The answer in a cell of the answer column, which may hold a whole solution."""
    answer = str(cell or "")
    if config.answer_delimiter is not None:
        answer = answer.rpartition(config.answer_delimiter)[2]
    # Whole solutions (NuminaMath) hold their answer in a box, or in several side by side.
    return collection(boxed_answer(answer) or answer).strip()


def reference_answers(config: DataConfig) -> dict[str, str]:
    """Answers of a whole data set by problem text; none of the embedded one, which has no rows."""
    if config.source == "embedded":
        return {}
    return {
        str(row[config.problem_column] or ""): reference_answer(config, row[config.answer_column])
        for row in _rows(config)
    }


def _embedded(config: DataConfig) -> list[Problem]:
    from stepwiser.tasks import make_problems

    made = make_problems(config.offset + config.limit, config.seed)[config.offset :]
    return [Problem(content_id(p.question), p.question, p.answer) for p in made]


def _rows(config: DataConfig) -> list[Mapping[str, Any]]:
    path = Path(config.source).expanduser()
    rows: list[Mapping[str, Any]]
    if path.is_file():
        rows = read_rows(path)
    elif path.suffix in READERS:
        raise UserError(f"dataset file {path} does not exist")
    else:
        rows = _read_hub(config)
    if not rows:
        raise UserError(f"dataset {config.source} is empty")
    for column in (config.problem_column, config.answer_column):
        if column not in rows[0]:
            raise UserError(
                f"dataset {config.source} has no column {column!r}; it has {sorted(rows[0])}: "
                "set data.problem_column and data.answer_column"
            )
    return rows


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """Rows of a file, read as its ending says (`READERS`); JSON lines for any other ending.

    Raises UserError where it is not valid JSON.
    """
    return READERS.get(path.suffix, _read_json_lines)(path)


def _read_parquet(path: Path) -> list[Mapping[str, Any]]:
    import pyarrow.parquet as pq

    return list(pq.read_table(path).to_pylist())


def _read_json(path: Path) -> list[Mapping[str, Any]]:
    """One array, or JSON lines all the same."""
    text = path.read_text()
    if not text.lstrip().startswith("["):
        return _read_json_lines(path)
    try:
        return list(json.loads(text))
    except json.JSONDecodeError as error:
        raise UserError(f"dataset file {path} is not valid JSON: {error}") from error


def _read_json_lines(path: Path) -> list[Mapping[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise UserError(f"dataset file {path} is not valid JSON: {error}") from error


READERS: dict[str, Callable[[Path], list[Mapping[str, Any]]]] = {
    ".parquet": _read_parquet,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
}
"""By the ending of a file's name; a further format needs an entry here and nothing else."""


def _read_hub(config: DataConfig) -> list[Mapping[str, Any]]:
    import datasets

    source = Path(config.source).expanduser()
    try:
        if source.is_dir() and (source / "dataset_info.json").is_file():
            return list(datasets.load_from_disk(str(source)))
        return list(datasets.load_dataset(config.source, config.subset, split=config.split))
    except Exception as error:  # the library raises a dozen unrelated types
        raise UserError(
            f"dataset {config.source} (subset {config.subset}, split {config.split}) cannot be "
            f"loaded: {type(error).__name__}: {error}"
        ) from error


def load_step_items(source: str, limit: int | None) -> list[StepItem]:
    """ProcessBench items of a JSON or JSON-lines file, in file order.

    A `limit` takes items evenly spaced over the file: ProcessBench puts all solutions with a wrong
    answer first, so its beginning alone has no right one and no F1.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"evaluate.source {source} does not exist: give a ProcessBench JSON file")
    rows = read_rows(path)
    needed = {"id", "problem", "steps", "label", "final_answer_correct"}
    for i, row in enumerate(rows):
        missing = needed - row.keys()
        if missing:
            raise UserError(f"{source}, item {i}: missing {sorted(missing)}")
    count = min(limit or len(rows), len(rows))
    return list(_items(rows[i * len(rows) // count] for i in range(count)))


def _items(rows: Iterable[Mapping[str, Any]]) -> Iterable[StepItem]:
    for row in rows:
        yield StepItem(
            id=str(row["id"]),
            problem=str(row["problem"]),
            steps=[str(step) for step in row["steps"]],
            label=int(row["label"]),
            final_answer_correct=bool(row["final_answer_correct"]),
            generator=str(row.get("generator", "")),
        )
