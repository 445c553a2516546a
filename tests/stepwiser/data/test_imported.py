"""Trajectories from elsewhere: read, told apart, cut into this policy's own tokens, valued."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from stepwiser.annotation.annotator import Annotator, ProblemAnnotation
from stepwiser.annotation.stopping import stopping_plan
from stepwiser.config import DataConfig, PromptConfig, load_config
from stepwiser.config.annotation import AnnotateConfig, LabelConfig
from stepwiser.data.imported import (
    ImportedProblem,
    ImportedSolution,
    imported_trajectories,
    load_imported,
)
from stepwiser.data.verifiers import ExactChecker
from stepwiser.errors import UserError
from stepwiser.prompting.prompt_format import PromptFormat
from tests.stepwiser.annotation.test_annotator import PROMPTS, QUESTION, RIGHT, Table
from tests.support.paths import ROOT
from tests.support.tiny import _tokenizer

CHECKER = ExactChecker()
BENCH = {
    "id": "gsm8k-0",
    "generator": "someone",
    "problem": "What is 6 x 7?",
    "steps": ["Six times seven.", "It is \\boxed{41}."],
    "final_answer_correct": False,
    "label": 1,
}
SOLUTION = {"problem": "What is 6 x 7?", "answer": "42", "solution": "6 x 7\n\nis \\boxed{42}"}


def write(folder: Path, *rows: dict, name: str = "given.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def without(row: dict, *columns: str) -> dict:
    return {key: value for key, value in row.items() if key not in columns}


def test_processbench_rows_find_their_answers(tmp_path: Path) -> None:
    data = {"problem": "What is 1 + 1?", "answer": "two is\n#### 2"}
    config = DataConfig(source=write(tmp_path, data, name="data.jsonl"), answer_delimiter="####")
    rows = (
        BENCH,
        BENCH | {"id": "right", "steps": ["\\boxed{42}"], "final_answer_correct": True},
        BENCH | {"id": "own", "problem": "1 x 1?", "answer": "1"},
        BENCH | {"id": "in the data", "problem": "What is\n1 + 1?"},
        BENCH | {"id": "nowhere", "problem": "What is love?"},
        BENCH,
        BENCH | {"id": "empty", "steps": ["", " "]},
    )
    loaded = load_imported(write(tmp_path, *rows), config, CHECKER)
    answers = {
        solution.solution_id: problem.answer
        for problem in loaded.problems
        if isinstance(problem, ImportedProblem)
        for solution in problem.solutions
    }
    assert answers == {"gsm8k-0": "42", "right": "42", "own": "1", "in the data": "2"}
    assert len(loaded.problems) == 3, "solutions of one problem stay together"
    reasons = {r.row: r.reason for r in loaded.rejected}
    assert reasons.keys() == {4, 5, 6}
    assert reasons[4].startswith("no reference answer") and "same id" in reasons[5]
    first = loaded.problems[0]
    assert isinstance(first, ImportedProblem)
    assert [s.correct for s in first.solutions] == [False, True]
    assert first.solutions[0].final_answer == "41"


@pytest.mark.parametrize("reference", ["?", "N/A", "the answer is unknown", "…"])
def test_references_that_say_nothing_are_listed(tmp_path: Path, reference: str) -> None:
    rows = (SOLUTION, SOLUTION | {"problem": "other?", "answer": reference})
    loaded = load_imported(write(tmp_path, *rows), DataConfig(), CHECKER)
    assert len(loaded.problems) == 1
    ((row, reason),) = [(r.row, r.reason) for r in loaded.rejected]
    assert row == 1 and "cannot be verified" in reason


def test_solutions_are_split_at_blank_lines(tmp_path: Path) -> None:
    delimited = SOLUTION | {"solution": "6 x 7\n\nis 42\n#### 42"}
    unboxed = SOLUTION | {"solution": "6 x 7\n\nis 42"}
    path = write(tmp_path, SOLUTION, delimited, unboxed)
    loaded = load_imported(path, DataConfig(answer_delimiter="####"), CHECKER)
    (problem,) = loaded.problems
    assert isinstance(problem, ImportedProblem) and problem.answer == "42"
    assert problem.solutions == (
        ImportedSolution(None, ("6 x 7\n\n", "is \\boxed{42}"), "42", None),
        ImportedSolution(None, ("6 x 7\n\n", "is 42\n#### 42"), "42", None),
    )
    assert [r.row for r in loaded.rejected] == [2]
    assert "data.answer_delimiter" in loaded.rejected[0].reason


@pytest.mark.parametrize(
    "row, words",
    [
        (without(BENCH, "problem"), r"row 0: missing \['problem'\]"),
        (without(SOLUTION, "answer"), r"row 0: missing \['answer'\]"),
        ({"question": "?", "answer": "1"}, r"missing \['problem', 'solution'\].*steps \(Process"),
        (without(BENCH, "id") | {"problem": "new"}, "none of 1 rows is usable.*no reference"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, row: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_imported(write(tmp_path, row), DataConfig(), CHECKER)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_imported(str(tmp_path / "none.jsonl"), DataConfig(), CHECKER)
    with pytest.raises(UserError, match="is empty"):
        load_imported(write(tmp_path), DataConfig(), CHECKER)


def test_the_name_of_a_unit_follows_the_content(tmp_path: Path) -> None:
    def content(row: dict) -> str:
        (problem,) = load_imported(write(tmp_path, row), DataConfig(), CHECKER).problems
        assert isinstance(problem, ImportedProblem)
        return problem.content

    assert content(SOLUTION) == content(dict(SOLUTION))
    other = SOLUTION | {"solution": "other\n\n\\boxed{42}"}
    assert len({content(SOLUTION), content(other), content(SOLUTION | {"id": "1"})}) == 3


@pytest.mark.parametrize("kind", ["chunks", "paragraphs"])
def test_prefix_ids_are_leading_ids_of_the_whole(kind: str) -> None:
    prompts = PromptFormat(_tokenizer(), PromptConfig(steps=kind))
    ids, steps = prompts.from_steps(["ana has 2.\n", "Then \u20ac3,\nso", "\\boxed{5} <eos>"])
    text = prompts.decode(ids)
    assert text == prompts.decode(prompts.encode(text)), "tokenized once, as a whole"
    if kind == "chunks":
        assert text == "".join(f"<chunk>{step}</chunk>" for step in steps.texts)
    else:
        assert text == "".join(steps.texts)
        assert all(step.endswith("\n\n") for step in steps.texts[:-1])
    assert prompts.tokenizer.eos_token_id not in ids, "text never becomes a special token"
    assert steps.token_ends == sorted(steps.token_ends) and steps.token_ends[-1] == len(ids)
    for index, end in enumerate(steps.token_ends):
        whole = (
            "".join(f"<chunk>{step}</chunk>" for step in steps.texts[: index + 1])
            if kind == "chunks"
            else "".join(steps.texts[: index + 1])
        )
        assert prompts.decode(ids[:end]).startswith(whole)
        assert not prompts.decode(ids[: end - 1]).startswith(whole), "and no longer than needed"


def test_what_cannot_be_written_is_counted_by_reason() -> None:
    solutions = tuple(
        ImportedSolution(str(i), steps, "170", True)
        for i, steps in enumerate(
            (("a <chunk>b",), ("buys 64+21=85\n",) * 9, ("Ω is no letter of its",))
        )
    )
    counts: Counter[str] = Counter()
    config = AnnotateConfig(max_chunks=8)
    problem = ImportedProblem("p", QUESTION, "170", solutions)
    assert imported_trajectories(problem, PROMPTS, CHECKER, config, 1, 4, counts) == []
    assert {key.removeprefix("malformed: ") for key in counts} == {
        "a step has a chunk tag in it",
        "more than 8 chunks",
        "the tokenizer does not give its text back",
    }


def annotate(table: Table, *solutions: ImportedSolution) -> ProblemAnnotation:
    config = AnnotateConfig(responses=4, rollouts=4, max_tokens=100, trajectories_per_problem=1)
    plan = stopping_plan(config, LabelConfig())
    annotator = Annotator(table, PROMPTS, CHECKER, config, plan, seed=0)
    return asyncio.run(annotator.annotate(ImportedProblem("p", QUESTION, "170", solutions)))


def test_given_trajectories_are_valued_whatever_the_policy_does() -> None:
    right, wrong = "<chunk>buys 64+21=85\n</chunk>", "<chunk>buys 64+21=86\n</chunk>"
    rest = RIGHT.removeprefix(right)
    given = [
        ImportedSolution(
            "mine", ("buys 64+21=86\n", "doubles 86*2=172\n\\boxed{172}"), "172", None
        ),
        ImportedSolution(
            "yours", ("buys 64+21=85\n", "doubles 85*2=170\n\\boxed{170}"), "170", None
        ),
        ImportedSolution("said", ("buys 64+21=85\n", "so 170"), None, True),
    ]
    table = Table({"": [RIGHT], right: [rest], wrong: [rest, "<chunk>\\boxed{172}</chunk>"]})
    result = annotate(table, *given)
    assert result.counts["all_right"] == 1, "the policy always solves it: filtered, if sampled"
    assert [t.trajectory_id for t in result.trajectories] == ["mine", "yours", "said"]
    assert [t.correct for t in result.trajectories] == [False, True, True]
    assert {(t.problem_successes, t.problem_trials) for t in result.trajectories} == {(4, 4)}
    values = {(v.trajectory_id, v.chunk_index): (v.successes, v.trials) for v in result.values}
    assert values == {
        ("mine", 0): (2, 4), ("mine", 1): (0, 1), ("yours", 0): (4, 4), ("yours", 1): (1, 1),
        ("said", 0): (4, 4), ("said", 1): (1, 1),
    }  # fmt: skip
    assert table.asked.count("") == 1 and table.asked.count(right) == 1, "Q_0, and one shared"
    assert sum(table.sizes[""]) == 4, "the pass rate still takes its responses"
    assert result.counts["chunks"] == 6 and result.counts["trajectories"] == 3


def test_the_config_takes_a_source() -> None:
    path = ROOT / "configs" / "gsm8k.yaml"
    assert load_config(path).annotate.source is None
    assert load_config(path, ["annotate.source=a.jsonl"]).annotate.source == "a.jsonl"


def test_all_of_processbench_gsm8k(shared_data: Path) -> None:
    data = DataConfig(
        source=str(shared_data / "gsm8k" / "test.jsonl"),
        problem_column="question",
        answer_delimiter="####",
    )
    loaded = load_imported(str(shared_data / "processbench" / "gsm8k.json"), data, CHECKER)
    assert not loaded.rejected
    prompts = PromptFormat(_tokenizer(), PromptConfig())
    counts: Counter[str] = Counter()
    found = [
        trajectory
        for problem in loaded.problems[:40]
        if isinstance(problem, ImportedProblem)
        for trajectory in imported_trajectories(
            problem, prompts, CHECKER, AnnotateConfig(), 8, 16, counts
        )
    ]
    assert len(found) >= 40 and not counts
    assert sum(len(p.solutions) for p in loaded.problems if isinstance(p, ImportedProblem)) == 400
