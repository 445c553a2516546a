"""Problems in: every supported format, and what is wrong with a row is said."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stepwiser.config import DataConfig
from stepwiser.data.sources import at_commit, hub_source, load_problems
from stepwiser.data.step_items import load_step_items
from stepwiser.data.verifiers import ExactChecker, MathVerifyChecker
from stepwiser.errors import UserError
from tests.support.hub_cache import add_to_cache, use_cache

ROWS = [
    {"question": "1+1?", "answer": "one and one\n#### 2"},
    {"question": "2+2?", "answer": "#### 4"},
    {"question": "", "answer": "#### 4"},
    {"question": "1+1?", "answer": "#### 2"},
    {"question": "3+3?", "answer": "#### "},
]


def _config(source: Path | str, **more: object) -> DataConfig:
    return DataConfig(
        source=str(source),
        problem_column="question",
        answer_column="answer",
        answer_delimiter="####",
        **more,  # type: ignore[arg-type]
    )


def _write(folder: Path, kind: str) -> Path:
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_good_rows_are_kept_and_bad_ones_listed(tmp_path: Path, kind: str) -> None:
    loaded = load_problems(_config(_write(tmp_path, kind)), ExactChecker())
    assert {(p.question, p.answer) for p in loaded.problems} == {("1+1?", "2"), ("2+2?", "4")}
    assert sorted(r.reason for r in loaded.rejected) == [
        "column question is empty",
        "reference answer '' cannot be verified",
        "the same problem came before",
    ]


@pytest.mark.parametrize(
    "reference", ["?", "N/A", "the answer is unknown", "", "  ", "...", r"\boxed{}", "null"]
)
def test_references_that_say_nothing_are_refused_and_listed(tmp_path: Path, reference: str) -> None:
    path = tmp_path / "data.jsonl"
    rows = [{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": reference}]
    path.write_text("\n".join(map(json.dumps, rows)))
    checker = MathVerifyChecker()
    loaded = load_problems(DataConfig(source=str(path)), checker)
    assert [problem.answer for problem in loaded.problems] == ["1"]
    ((row, reason),) = [(r.row, r.reason) for r in loaded.rejected]
    assert row == 1 and "cannot be verified" in reason


def test_a_solution_with_several_boxes_has_the_set_for_a_reference(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"problem": "?", "answer": r"so \boxed{3}, \boxed{5}"}))
    (problem,) = load_problems(DataConfig(source=str(path)), ExactChecker()).problems
    assert problem.answer == "3, 5"


def test_a_datasets_folder(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS[:2]).save_to_disk(str(tmp_path / "ds"))
    loaded = load_problems(_config(tmp_path / "ds"), ExactChecker())
    assert len(loaded.problems) == 2


def test_whole_solutions_give_the_answer_of_their_last_box(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        json.dumps({"question": "?", "answer": r"so \boxed{1}, then \boxed{\frac{1}{2}}"})
    )
    config = DataConfig(source=str(path), problem_column="question")
    (problem,) = load_problems(config, ExactChecker()).problems
    assert problem.answer == r"\frac{1}{2}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"problem_column": "prompt"}, ["no column 'prompt'", "question", "data.problem_column"]),
        ({"source": "nowhere.jsonl"}, ["nowhere.jsonl", "does not exist"]),
        ({"offset": 10}, ["no usable problem", "offset 10"]),
    ],
)
def test_bad_datasets_are_named(
    tmp_path: Path, change: dict[str, object], words: list[str]
) -> None:
    config = _config(_write(tmp_path, "jsonl")).model_copy(update=change)
    with pytest.raises(UserError) as error:
        load_problems(config, ExactChecker())
    for word in words:
        assert word in str(error.value)


def test_broken_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": ')
    with pytest.raises(UserError, match="not valid JSON"):
        load_problems(_config(path), ExactChecker())


def test_offset_and_limit_do_not_overlap(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = [{"question": f"{i}?", "answer": f"#### {i + 1}"} for i in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)))
    first = load_problems(_config(path, limit=8, seed=3), ExactChecker()).problems
    second = load_problems(_config(path, limit=8, offset=8, seed=3), ExactChecker()).problems
    assert not {p.problem_id for p in first} & {p.problem_id for p in second}


def test_processbench_items(tmp_path: Path) -> None:
    path = tmp_path / "pb.json"
    item = {"id": "a", "problem": "p", "steps": ["x", "y"], "label": 1}
    path.write_text(json.dumps([item]))
    with pytest.raises(UserError, match="final_answer_correct"):
        load_step_items(str(path), None)
    path.write_text(json.dumps([{**item, "final_answer_correct": False, "generator": "g"}]))
    (loaded,) = load_step_items(str(path), None)
    assert (loaded.steps, loaded.label, loaded.final_answer_correct) == (["x", "y"], 1, False)


def test_a_limit_takes_processbench_items_from_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "pb.json"
    item = {"problem": "p", "steps": ["x"], "generator": "g"}
    rows = [
        {**item, "id": str(i), "label": 0 if i < 6 else -1, "final_answer_correct": i >= 6}
        for i in range(10)
    ]
    path.write_text(json.dumps(rows))
    assert [row.id for row in load_step_items(str(path), 4)] == ["0", "2", "5", "7"]
    assert [row.id for row in load_step_items(str(path), 10)] == [str(i) for i in range(10)]
    assert len(load_step_items(str(path), 99)) == 10


@pytest.mark.data
def test_real_gsm8k_and_processbench(shared_data: Path) -> None:
    config = _config(shared_data / "gsm8k" / "train.jsonl", limit=50)
    loaded = load_problems(config, ExactChecker())
    assert len(loaded.problems) == 50
    assert all(p.answer.replace(",", "").lstrip("-").isdigit() for p in loaded.problems)
    assert len(load_step_items(str(shared_data / "processbench" / "gsm8k.json"), None)) == 400


def test_a_known_name_is_read_from_the_hub_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    use_cache(monkeypatch, tmp_path)
    config = DataConfig(source="gsm8k")
    with pytest.raises(UserError, match="run `hf download openai/gsm8k --repo-type dataset`"):
        load_problems(config, ExactChecker())
    folder = tmp_path / "set"
    (folder / "main").mkdir(parents=True)
    (folder / "main" / "train.jsonl").write_text('{"question": "2+3?", "answer": "5\\n#### 5"}\n')
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: train, path: main/*}\n---\n"
    )
    commit = add_to_cache(tmp_path, "openai/gsm8k", folder, kind="dataset")
    (problem,) = load_problems(config, ExactChecker()).problems
    assert (problem.question, problem.answer) == ("2+3?", "5")
    (folder / "main" / "train.jsonl").write_text('{"question": "2+4?", "answer": "#### 6"}\n')
    add_to_cache(tmp_path, "openai/gsm8k", folder, kind="dataset")
    (problem,) = load_problems(config, ExactChecker()).problems
    assert problem.answer == "6", "the branch has moved on"
    (problem,) = load_problems(at_commit(config, commit), ExactChecker()).problems
    assert problem.answer == "5"
    asked = f"openai/gsm8k@{commit}"
    config = _config(asked, subset="main")
    assert load_problems(config, ExactChecker()).problems == [problem]
    with pytest.raises(UserError, match="hf download openai/gsm8k .*--revision v9"):
        load_problems(_config("openai/gsm8k@v9", subset="main"), ExactChecker())


def test_files_are_of_no_commit(tmp_path: Path) -> None:
    for source in ("embedded", str(_write(tmp_path, "jsonl")), "missing.csv"):
        assert hub_source(DataConfig(source=source)) is None
    assert str(hub_source(DataConfig(source="aime"))) == "di-zhang-fdu/AIME_1983_2024@main"
