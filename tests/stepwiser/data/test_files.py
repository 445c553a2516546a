"""Files as people have them: every row is read as its format says, or named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stepwiser.config import DataConfig
from stepwiser.data.files import READERS, read_rows
from stepwiser.data.imported import load_imported
from stepwiser.data.sources import load_problems
from stepwiser.data.step_items import load_step_items, read_step_items
from stepwiser.data.verifiers import ExactChecker
from stepwiser.errors import UserError

CHECKER = ExactChecker()


def problems_of(path: Path, **more: Any) -> list[tuple[str, str]]:
    loaded = load_problems(DataConfig(source=str(path), **more), CHECKER)
    return sorted((p.question, p.answer) for p in loaded.problems)


def test_a_line_separator_in_a_text_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    rows = [{"problem": f"{odd} {i}", "answer": "1"} for i in range(3)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    assert problems_of(path) == [(f"{odd} {i}", "1") for i in range(3)]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_signatures_windows_line_ends_and_blank_lines(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    rows = ['{"problem": "p", "answer": 1}', '{"problem": "q\u00e9", "answer": "2"}']
    text = {
        "json": "[" + ",\r\n".join(rows) + "]\r\n",
        "csv": 'problem,answer\r\np,1\r\n\r\n"qé",2',
    }
    lines = "\r\n" + rows[0] + "\r\n \t\r\n\r\n" + rows[1] + "\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.get(kind, lines).encode())
    assert problems_of(path) == [("p", "1"), ("q\u00e9", "2")]


def test_a_row_that_cannot_be_read_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = b'{"problem": "p", "answer": "1"}'
    deep = b"[" * 100_000
    long = b'{"problem": "p", "answer": ' + b"1" * 5000 + b"}"
    for broken, words in (
        (b'{"problem": ', "not valid JSON"),
        (b'{"problem": "\xff", "answer": "1"}', "not valid UTF-8"),
        (b'["p", "1"]', "an array"),
        (b"null", "null"),
        (b"7", "a number"),
        (b'{"problem": "q"}', "no column 'answer'; it has \\['problem'\\]"),
        (b'{"problem": "\\ud800", "answer": "1"}', "lone surrogate"),
        (deep, "nested too deeply"),
        (long, "not valid JSON.*4300"),
    ):
        path.write_bytes(good + b"\n\n" + broken + b"\n" + good)
        with pytest.raises(UserError, match=f"a.jsonl, row 1: .*{words}.*line 3.*skip_bad_rows"):
            problems_of(path)
        loaded = load_problems(DataConfig(source=str(path), skip_bad_rows=True), CHECKER)
        assert len(loaded.problems) == 1 and loaded.rows == 3
        assert {r.row for r in loaded.rejected} == {1, 2}, "the broken one, and the repeated one"


def test_a_cut_array_names_its_first_broken_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"problem": f"p{i}", "answer": "1"} for i in range(5)]
    whole = json.dumps(rows)
    path.write_text(whole[: whole.index("p3")])
    with pytest.raises(UserError, match="not valid JSON from row 3 on.*rows 0 to 2 are whole"):
        problems_of(path)
    path.write_text('{"rows":\n []}')
    with pytest.raises(UserError, match="one JSON object"):
        problems_of(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("problem,answer\np,1\nq\n", r"row 1: it has 1 fields, and there are 2 columns \(line 3\)"),
        ('problem,answer\np,1\n"q,2\nr,3\n', "not valid CSV in row 1"),
        ("problem,problem\np,1\n", "two columns called 'problem'"),
        ("problem,answer\n", "is empty"),
        ("", "is empty"),
    ],
)
def test_csv_that_is_not_whole_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        problems_of(path)


def test_fields_of_csv_may_hold_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "AIME.CSV"
    path.write_bytes(b'ID,Question,Answer\r\n1,"a, ""b""\nc",025\r\n2,d,0\r\n')
    assert problems_of(path, like="aime") == [('a, "b"\nc', "025"), ("d", "0")]
    tabs = tmp_path / "a.tsv"
    tabs.write_text("problem\tanswer\np, q\t1\n")
    assert problems_of(tabs) == [("p, q", "1")]


# --- mutated files --------------------------------------------------------------------------------

ITEM = {
    "id": "a", "problem": "6 x 7?", "steps": ["six", "is \\boxed{41}"], "label": 1,
    "final_answer_correct": False, "answer": "42",
}  # fmt: skip
PRM = {
    "question": {"problem": "p", "ground_truth_answer": "4"},
    "label": {
        "steps": [
            {"completions": [{"text": "x", "rating": 1}], "chosen_completion": 0},
            {"completions": [{"text": "y", "rating": -1}], "chosen_completion": None},
        ],
        "finish_reason": "found_error",
    },
}
SHEPHERD = {"input": "p? Step 1: a ки\nStep 2: b ки", "label": "p? Step 1: a +\nStep 2: b -"}
TRL = {"prompt": "p", "completions": ["a", "b"], "labels": [True, False], "answer": "3"}
EXPORT = {
    "trajectory_id": "t", "problem": "p", "answer": "4", "steps": ["a", "b"], "correct": False,
    "values": [1.0, 0.5], "labels": [True, None],
}  # fmt: skip
PLAIN = {"problem": "6 x 7?", "answer": "42", "solution": "6 x 7\n\nis \\boxed{42}"}
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 7, 1.5, float("nan"), "", "x", "\u2028", "\ud800", [], [1], ["a", None],
    {}, {"a": 1}, [{"role": "user", "content": "hi"}], [[]], "[", "[1", 10**30,
)  # fmt: skip


def steps(path: Path, skip: bool) -> int:
    found = read_step_items(str(path), None, skip)
    return len(found.items) + len(found.rejected)


def problems(path: Path, skip: bool) -> int:
    loaded = load_problems(DataConfig(source=str(path), skip_bad_rows=skip), CHECKER)
    return len(loaded.problems) + len(loaded.rejected)


def imported(path: Path, skip: bool) -> int:
    loaded = load_imported(str(path), DataConfig(skip_bad_rows=skip), CHECKER)
    used = sum(len(getattr(problem, "solutions", ())) for problem in loaded.problems)
    return used + len(loaded.rejected)


LOADERS: list[tuple[str, Callable[[Path, bool], int], dict[str, Any]]] = [
    ("problems", problems, PLAIN),
    ("processbench", steps, ITEM),
    ("prm800k", steps, PRM),
    ("shepherd", steps, SHEPHERD),
    ("trl", steps, TRL),
    ("export", steps, EXPORT),
    ("solutions", imported, PLAIN),
    ("imported processbench", imported, ITEM),
    ("imported trl", imported, TRL),
    ("imported prm800k", imported, PRM),
    ("imported export", imported, EXPORT),
]


def mutated(value: Any, rng: random.Random) -> Any:
    """The value with one thing in it changed, taken out, or replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.2:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = rng.randrange(len(value))
        return [*value[:at], mutated(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD)


@pytest.mark.parametrize(("name", "load", "row"), LOADERS, ids=[name for name, *_ in LOADERS])
def test_no_row_is_lost_and_no_loader_falls(
    tmp_path: Path, name: str, load: Callable[[Path, bool], int], row: dict[str, Any]
) -> None:
    """Every row of a mutated file is used or listed; or an error names the file."""
    rng = random.Random(name)
    for number in range(150):
        kind = rng.choice(("json", "jsonl"))
        path = tmp_path / f"{number}.{kind}"
        rows: list[Any] = [row | ({"id": str(i)} if "id" in row else {}) for i in range(4)]
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(rows))
            rows[at] = mutated(rows[at], rng)
        text = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
        content = text.encode()
        if rng.random() < 0.3:
            cut = rng.randrange(len(content))
            content = content[:cut] + rng.randbytes(rng.randint(0, 3)) + content[cut + 2 :]
        path.write_bytes(content)
        for skip in (False, True):
            try:
                handled = load(path, skip)
            except UserError as error:
                assert path.name in str(error), f"{rows}: {error}"
            else:
                assert handled == len(read_rows(path)), f"{rows} in {path}"


def test_a_skipped_row_is_one_that_was_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [ITEM, ITEM | {"id": "b", "steps": "abc"}, ITEM | {"id": "c", "label": 9}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match='row 1: column steps is "abc".*1 more rows.*evaluate.skip'):
        load_step_items(str(path), None)
    found = read_step_items(str(path), None, skip_bad_rows=True)
    assert [item.id for item in found.items] == ["a"]
    assert [r.row for r in found.rejected] == [1, 2] and "2 steps" in found.rejected[1].reason


def test_broken_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"problem": ["p"], "answer": [0.0]}), path)
    assert problems_of(path) == [("p", "0")]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="a.parquet is not valid Parquet"):
        problems_of(path)


@pytest.mark.parametrize("ending", sorted(READERS))
def test_a_missing_file_is_named(tmp_path: Path, ending: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        problems_of(tmp_path / f"none{ending}")
