"""Rows of a file, read as its format says: JSON lines, one JSON array, CSV, Parquet.

A row that cannot be read is a row all the same, with the reason: who reads decides whether it ends
the start or is listed. What makes a whole file unreadable is an error that names the file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepwiser.errors import UserError

JSON_SPACE = " \t\r\n"
"""Whitespace of JSON; a line separator (U+2028) or a no-break space is none."""

LONGEST_FIELD = 2**27
"""Characters of one CSV field; Python's own limit is a long solution."""


@dataclass(frozen=True)
class FileRow:
    """A row of a file, or what stands in its place."""

    index: int
    """From 0; blank lines are no rows."""
    value: Mapping[str, Any] = field(default_factory=dict)
    line: int | None = None
    """Of the file, from 1; None where rows have no lines of their own."""
    problem: str = ""
    """Why it cannot be read."""

    def says(self, reason: str) -> str:
        """`row 3: reason (line 5)`"""
        return f"row {self.index}: {reason}" + (f" (line {self.line})" if self.line else "")


class BadRow(ValueError):
    """A row that cannot be read; the message names column, value and what to do."""


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, and why."""

    row: int
    reason: str


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have has none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_table(path: Path) -> bool:
    """Whether `read_rows` can be asked: a file, or a folder that `datasets` saved."""
    return is_file(path) or is_file(path / "dataset_info.json")


def read_rows(path: Path) -> list[FileRow]:
    """Rows of a file, read as its ending says (`READERS`); JSON lines for any other ending. Of a
    folder that `datasets` saved, those of its set.

    Raises UserError where nothing of it can be read.
    """
    if not is_file(path) and is_table(path):
        return _read_saved(path)
    try:
        return READERS.get(path.suffix.lower(), _read_json_lines)(path)
    except OSError as error:
        raise UserError(f"dataset file {path} cannot be read: {error.strerror or error}") from error


def checked(
    rows: Iterable[tuple[FileRow, str]], source: str, skip: bool, key: str | None = None
) -> None:
    """Raise UserError for rows with a reason, naming the first and how many there are.

    ``skip``: they were asked to be left out (by ``key`` of the config, where there is one, or the
    option), and nothing is raised.
    """
    bad = [(row, reason) for row, reason in rows if reason]
    if not bad or skip:
        return
    first, reason = bad[0]
    more = f"; {len(bad) - 1} more rows cannot be read" if len(bad) > 1 else ""
    option = f"{key}=true (--skip-bad-rows)" if key else "--skip-bad-rows"
    raise UserError(
        f"{source}, {first.says(reason)}{more}: mend the file, or leave such rows out, counted and "
        f"listed, with {option}"
    )


def rows_of(values: Iterable[Any]) -> list[FileRow]:
    """Rows of a library's own table."""
    return [_row(index, value) for index, value in enumerate(values)]


def _row(index: int, value: Any, line: int | None = None) -> FileRow:
    if isinstance(value, Mapping):
        return FileRow(index, value, line)
    kind = {list: "an array", str: "a text", type(None): "null", bool: "a truth value"}
    word = kind.get(type(value), "a number")
    return FileRow(index, {}, line, f"it is {word}, and a row is an object: {{column: value}}")


def _read_json_lines(path: Path) -> list[FileRow]:
    """One value a line. Lines end at line feeds alone: U+2028 and its like are text."""
    rows: list[FileRow] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            # Some editors put a signature (BOM) at the start of a file.
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip(JSON_SPACE)
            if text:
                rows.append(_row(len(rows), json.loads(text), number))
        except UnicodeDecodeError as error:
            words = f"it is not valid UTF-8: {error.reason} at byte {error.start}"
            rows.append(FileRow(len(rows), {}, number, words))
        except (ValueError, RecursionError) as error:
            rows.append(FileRow(len(rows), {}, number, f"it is not valid JSON: {_why(error)}"))
    return rows


def _why(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _read_json(path: Path) -> list[FileRow]:
    """One array, or JSON lines all the same."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"dataset file {path} is not valid JSON: it is not UTF-8 ({error.reason} at byte "
            f"{error.start}): save it as UTF-8"
        ) from error
    if not text.lstrip(JSON_SPACE).startswith("["):
        rows = _read_json_lines(path)
        if rows and rows[0].problem and _is_object(text):
            raise UserError(
                f"dataset file {path} is one JSON object: its rows must be an array, or one a line"
            )
        return rows
    try:
        return rows_of(json.loads(text))
    except (ValueError, RecursionError) as error:
        row = _whole_items(text)
        raise UserError(
            f"dataset file {path} is not valid JSON from row {row} on: {_why(error)}; rows 0 to "
            f"{row - 1} are whole"
            if row
            else f"dataset file {path} is not valid JSON from its first row on: {_why(error)}"
        ) from error


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _whole_items(text: str) -> int:
    """How many items of an array that is cut off or broken come before the fault."""
    decoder, count = json.JSONDecoder(), 0
    at = text.index("[") + 1
    while True:
        while at < len(text) and text[at] in JSON_SPACE + ",":
            at += 1
        try:
            _, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return count
        count += 1


def _read_csv(path: Path) -> list[FileRow]:
    """A line of column names, then rows; a field in quotes may hold line ends."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    rows: list[FileRow] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # Strict: a quote that is never closed would else swallow all rows behind it.
            dialect = "excel-tab" if path.suffix.lower() == ".tsv" else "excel"
            reader = csv.reader(file, dialect, strict=True)
            names = next(reader, [])
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise UserError(f"dataset file {path} has two columns called {twice[0]!r}")
            begin = reader.line_num + 1
            for fields in reader:
                line, begin = begin, reader.line_num + 1
                if not fields:
                    continue
                value = dict(zip(names, fields, strict=False))
                words = (
                    f"it has {len(fields)} fields, and there are {len(names)} columns"
                    if len(fields) != len(names)
                    else ""
                )
                rows.append(FileRow(len(rows), value, line, words))
    except UnicodeDecodeError as error:
        raise UserError(
            f"dataset file {path} is not UTF-8 after row {len(rows) - 1}: save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise UserError(
            f"dataset file {path} is not valid CSV in row {len(rows)} (line {reader.line_num}): "
            f"{error}"
        ) from error
    return rows


def _read_parquet(path: Path) -> list[FileRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return rows_of(pq.read_table(path).to_pylist())
    except (pa.ArrowException, ValueError, KeyError) as error:
        words = str(error).split("\n")[0]
        raise UserError(f"dataset file {path} is not valid Parquet: {words}") from error


def _read_saved(path: Path) -> list[FileRow]:
    import datasets

    try:
        return rows_of(datasets.load_from_disk(str(path)))
    except Exception as error:  # the library raises a dozen unrelated types
        words = str(error).split("\n")[0]
        raise UserError(f"dataset folder {path} cannot be loaded: {words}") from error


READERS: dict[str, Callable[[Path], list[FileRow]]] = {
    ".parquet": _read_parquet,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}
"""By the ending of a file's name; a further format needs an entry here and nothing else."""
