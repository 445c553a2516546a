"""What a cell says, in each of the ways that people write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepwiser.config import DataConfig
from stepwiser.data.cells import truth, whole
from stepwiser.data.files import BadRow
from stepwiser.data.imported import ImportedProblem, load_imported
from stepwiser.data.presets import PRESETS, with_preset
from stepwiser.data.records import Judgement, StepItem
from stepwiser.data.sources import load_problems, reference_answers
from stepwiser.data.step_items import load_step_items, read_step_items, with_own_ids
from stepwiser.data.verifiers import ExactChecker
from stepwiser.errors import UserError
from stepwiser.evaluation.scoring import score_judge

CHECKER = ExactChecker()
BENCH = {
    "id": "a", "problem": "6 x 7?", "steps": ["x", "is \\boxed{41}"], "label": 1,
    "final_answer_correct": False,
}  # fmt: skip


def write(folder: Path, *rows: Any, name: str = "a.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def answer_of(folder: Path, value: Any, **more: Any) -> str:
    source = write(folder, {"problem": "p", "answer": value})
    (problem,) = load_problems(DataConfig(source=source, **more), CHECKER).problems
    return problem.answer


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (0, "0"), (0.0, "0"), (-0.0, "0"), (False, "false"), (True, "true"), (42, "42"),
        (42.0, "42"), (0.5, "0.5"), (1e300, "1e+300"), (10**40, "1" + "0" * 40), ("0", "0"),
        (" 7 ", "7"), ("so \\boxed{0}", "0"),
    ],
)  # fmt: skip
def test_an_answer_of_json_is_what_it_says(tmp_path: Path, value: Any, answer: str) -> None:
    assert answer_of(tmp_path, value) == answer


@pytest.mark.parametrize("value", [None, "", "  ", float("nan")])
def test_an_empty_answer_is_listed(tmp_path: Path, value: Any) -> None:
    source = write(tmp_path, {"problem": "p", "answer": value}, {"problem": "q", "answer": 1})
    loaded = load_problems(DataConfig(source=source), CHECKER)
    assert [(r.row, r.reason) for r in loaded.rejected] == [
        (0, "reference answer '' cannot be verified")
    ]


def test_a_nested_answer_needs_a_path(tmp_path: Path) -> None:
    nested = {"truth": {"value": 4, "unit": "m"}}
    assert answer_of(tmp_path, nested, answer_column="answer.truth.value") == "4"
    assert answer_of(tmp_path, ["3", "4"], answer_column="answer.1") == "4"
    with pytest.raises(UserError, match=r"column answer holds .*data.answer_column .*answer.truth"):
        answer_of(tmp_path, nested)
    with pytest.raises(UserError, match=r"data.answer_column to a path into it \(answer.0\)"):
        answer_of(tmp_path, ["3"])
    with pytest.raises(UserError, match="no column 'answer.truth.x'"):
        answer_of(tmp_path, nested, answer_column="answer.truth.x")
    source = write(tmp_path, {"problem": "p", "a.b": "2", "a": {"b": 3}})
    (problem,) = load_problems(DataConfig(source=source, answer_column="a.b"), CHECKER).problems
    assert problem.answer == "2", "a column that is called so goes first"


SYSTEM = {"role": "system", "content": "Answer in a box."}
USER = {"role": "user", "content": "What is 1 + 1?"}
MODEL = {"role": "assistant", "content": "2"}


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [SYSTEM, USER, MODEL],
        [{"from": "human", "value": "What is 1 + 1?"}, {"from": "gpt", "value": "2"}],
        [{"role": "user", "content": [{"type": "text", "text": "What is "}, {"text": "1 + 1?"}]}],
    ],
)
def test_of_messages_the_user_turn_is_the_problem(tmp_path: Path, messages: Any) -> None:
    source = write(tmp_path, {"prompt": messages, "answer": "2"})
    config = DataConfig(source=source, problem_column="prompt")
    (problem,) = load_problems(config, CHECKER).problems
    assert problem.question == "What is 1 + 1?"
    assert reference_answers(config) == {"What is 1 + 1?": "2"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([USER, MODEL, USER], "2 user turns; a problem is one"),
        ([SYSTEM], "0 user turns"),
        ([], "0 user turns"),
        (["What?"], "messages have role and content"),
        ([{"role": "tool", "content": "x"}], 'role "tool"'),
        ([{"role": "user", "content": [{"type": "image", "image": "x"}]}], "only text is read"),
        ({"text": "What?"}, "data.problem_column to a path"),
    ],
)
def test_what_is_no_problem_is_refused(tmp_path: Path, value: Any, words: str) -> None:
    source = write(tmp_path, {"problem": "fine", "answer": "2"}, {"problem": value, "answer": "2"})
    with pytest.raises(UserError, match=rf"row 1: column problem .*{words}.*\(line 2\)"):
        load_problems(DataConfig(source=source), CHECKER)


@pytest.mark.parametrize("value", [True, 1, 1.0, "True", "true", " TRUE ", "1", "yes"])
def test_true_is_true(value: Any) -> None:
    assert truth(value, "c") is True


@pytest.mark.parametrize("value", [False, 0, 0.0, "False", "false", "0", "No"])
def test_false_is_false(tmp_path: Path, value: Any) -> None:
    assert truth(value, "c") is False
    source = write(tmp_path, BENCH | {"final_answer_correct": value})
    (item,) = load_step_items(source, None)
    assert item.final_answer_correct is False
    row = BENCH | {"final_answer_correct": value, "answer": "42"}
    (problem,) = load_imported(write(tmp_path, row), DataConfig(), CHECKER).problems
    assert isinstance(problem, ImportedProblem) and problem.solutions[0].correct is False


@pytest.mark.parametrize("value", [2, -1, "maybe", "", [], {}, 0.5])
def test_what_is_no_truth_value_is_refused(tmp_path: Path, value: Any) -> None:
    source = write(tmp_path, BENCH, BENCH | {"id": "b", "final_answer_correct": value})
    for load in (
        lambda: load_step_items(source, None),
        lambda: load_imported(source, DataConfig(), CHECKER),
    ):
        with pytest.raises(UserError, match=r"row 1: column final_answer_correct is .*line 2"):
            load()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("abc", 'column steps is "abc", not a list of steps'),
        ({"0": "a"}, "not a list of steps"),
        (None, "column steps is null"),
        (3, "column steps is 3"),
        (["a", None], "column steps, step 1: null is not a text"),
        (["a", ["b"]], "step 1"),
        ("[1", "no list of steps"),
    ],
)
def test_steps_that_are_no_list_are_refused(tmp_path: Path, value: Any, words: str) -> None:
    source = write(tmp_path, BENCH, BENCH | {"id": "b", "steps": value})
    for load in (
        lambda: load_step_items(source, None),
        lambda: load_imported(source, DataConfig(), CHECKER),
    ):
        with pytest.raises(UserError, match=r"row 1: ") as error:
            load()
        assert words in str(error.value)


def test_steps_in_csv_are_a_list_of_json(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,problem,steps,label,final_answer_correct\na,p,"[""x"", ""y""]",-1,True\n')
    (item,) = load_step_items(str(path), None)
    assert (item.steps, item.label, item.final_answer_correct) == (["x", "y"], -1, True)


@pytest.mark.parametrize("value", [2, -2, "x", 0.5, True, None, [0, 1]])
def test_a_label_is_a_step_of_its_own(tmp_path: Path, value: Any) -> None:
    source = write(tmp_path, BENCH, BENCH | {"id": "b", "label": value})
    with pytest.raises(UserError, match=r"row 1: .*label"):
        load_step_items(source, None)


def test_whole_numbers() -> None:
    assert [whole(v, "c") for v in (3, 3.0, "3", " -1 ")] == [3, 3, 3, -1]
    for value in (True, 3.5, "3.5", None, float("inf"), "١x"):
        with pytest.raises(BadRow):
            whole(value, "c")


def test_items_of_one_id_are_all_scored_and_named(tmp_path: Path) -> None:
    ids = ["a", "b", "a", "a~2", "a"]
    rows = [BENCH | {"id": name, "problem": f"p{i}"} for i, name in enumerate(ids)]
    found = read_step_items(write(tmp_path, *rows), None)
    assert [item.id for item in found.items] == ["a", "b", "a~3", "a~2", "a~4"]
    assert [item.problem for item in found.items] == [f"p{i}" for i in range(5)]
    assert found.twice == {"a": 3} and "'a' (3 items)" in found.notices[0]
    limited = load_step_items(write(tmp_path, *rows), 2)
    assert [item.id for item in limited] == ["a", "a~3"], "the same ids whatever the limit"


def test_given_solutions_of_one_id_are_all_valued(tmp_path: Path) -> None:
    row = BENCH | {"answer": "42"}
    other = row | {"steps": ["y", "is \\boxed{42}"], "final_answer_correct": True}
    loaded = load_imported(write(tmp_path, row, other, row), DataConfig(), CHECKER)
    (problem,) = loaded.problems
    assert isinstance(problem, ImportedProblem)
    assert [s.solution_id for s in problem.solutions] == ["a", "a~2"]
    assert [(r.row, r.reason) for r in loaded.rejected] == [(2, "the same id came before")]
    assert loaded.notices and "'a' (2 solutions)" in loaded.notices[0]


def test_a_perfect_judge_is_perfect_where_items_share_an_id(tmp_path: Path) -> None:
    right = BENCH | {"label": -1, "final_answer_correct": True, "steps": ["r"]}
    items = load_step_items(write(tmp_path, BENCH, right, BENCH, right), None)
    rows = [
        Judgement(item.id, "j", i, [int(i != item.label)], i != item.label, 1.0, "", 1, 0)
        for item in items
        for i in range(len(item.steps))
    ]
    score = score_judge(items, rows, 10)["majority"]
    assert score["official"]["f1"] == score["by_final_answer"]["f1"] == 1.0
    with pytest.raises(ValueError, match="several items, 'a'"):
        score_judge([*items, items[0]], rows, 10)


def test_own_ids_are_kept() -> None:
    items = [StepItem(name, "p", ["s"], -1, True, "") for name in ("x", "y")]
    assert with_own_ids(items) == (items, {})


def test_windows_line_ends_part_steps(tmp_path: Path) -> None:
    row = {"problem": "p", "answer": "2", "solution": "one\r\n\r\ntwo\r\n\r\n\\boxed{2}"}
    (problem,) = load_imported(write(tmp_path, row), DataConfig(), CHECKER).problems
    assert isinstance(problem, ImportedProblem) and len(problem.solutions[0].steps) == 3


def test_known_names_have_their_columns(tmp_path: Path) -> None:
    from typing import get_args

    names = get_args(get_args(DataConfig.model_fields["like"].annotation)[0])
    assert set(names) == set(PRESETS)
    config = with_preset(DataConfig(source="gsm8k"))
    assert (config.source, config.subset, config.problem_column) == (
        "openai/gsm8k", "main", "question",
    )  # fmt: skip
    assert config.answer_delimiter == "####"
    assert with_preset(DataConfig(source="gsm8k", split="test")).split == "test"
    assert with_preset(DataConfig(source="numina-math")).answer_column == "solution"
    other = DataConfig(source="my/set", problem_column="q")
    assert with_preset(other) == other
    source = write(tmp_path, {"question": "1+1?", "answer": "one and one\n#### 2"})
    (problem,) = load_problems(DataConfig(source=source, like="gsm8k"), CHECKER).problems
    assert (problem.question, problem.answer) == ("1+1?", "2")
    whole = write(tmp_path, {"problem": "p", "solution": "so $\\boxed{\\frac{1}{2}}$"})
    (problem,) = load_problems(DataConfig(source=whole, like="math"), CHECKER).problems
    assert problem.answer == "\\frac{1}{2}"


def test_a_file_that_is_called_like_a_known_set_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"problem": "mine", "answer": "1"}, name="math")
    (problem,) = load_problems(DataConfig(source="math"), CHECKER).problems
    assert problem.question == "mine"


@pytest.mark.data
def test_real_math_and_processbench(shared_data: Path) -> None:
    config = DataConfig(source=str(shared_data / "math" / "math500.jsonl"), like="math", limit=500)
    assert len(load_problems(config, CHECKER).problems) == 500
    source = str(shared_data / "math" / "train_problems_and_answers.json")
    rows = json.loads(Path(source).read_text())
    names = {"problem_column": next(k for k in rows[0] if k in ("problem", "question"))}
    answer = next(k for k in rows[0] if "answer" in k)
    loaded = load_problems(
        DataConfig(source=source, answer_column=answer, limit=8000, **names), CHECKER
    )
    assert len(loaded.problems) + len(loaded.rejected) == len(rows) == 7500
    found = read_step_items(str(shared_data / "processbench" / "math.json"), None)
    assert len(found.items) == 1000 and not found.rejected and found.form == "ProcessBench"
