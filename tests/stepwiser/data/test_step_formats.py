"""Labelled steps of other makers, as their formats are documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepwiser.config import DataConfig
from stepwiser.data.imported import ImportedProblem, load_imported
from stepwiser.data.step_items import read_step_items
from stepwiser.data.verifiers import ExactChecker
from stepwiser.errors import UserError
from stepwiser.run.export import Format, export
from tests.stepwiser.run.annotated_run import write_run

CHECKER = ExactChecker()


def write(folder: Path, *rows: Any) -> str:
    path = folder / "labelled.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return str(path)


def completion(text: str, rating: int | None) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": False}


def prm800k(*steps: dict[str, Any], reason: str) -> dict[str, Any]:
    return {
        "labeler": "x",
        "generation": 9,
        "question": {
            "problem": "What is 2 + 2?",
            "ground_truth_answer": "4",
            "pre_generated_steps": ["a", "b"],
            "pre_generated_answer": "5",
        },
        "label": {"steps": list(steps), "total_time": 1, "finish_reason": reason},
    }


def step(
    *completions: dict[str, Any], chosen: int | None = None, human: str | None = None
) -> dict[str, Any]:
    written = None if human is None else completion(human, None)
    return {
        "completions": list(completions), "human_completion": written, "chosen_completion": chosen,
    }  # fmt: skip


def test_prm800k_gives_the_path_that_was_chosen(tmp_path: Path) -> None:
    right = prm800k(
        step(completion("no", -1), completion("two", 1), chosen=1),
        step(completion("bad", -1), human="by hand"),
        step(completion("neutral", 0), chosen=0),
        reason="solution",
    )
    wrong = prm800k(
        step(completion("one", 1), chosen=0), step(completion("off", -1)), reason="found_error"
    )
    lost = prm800k(step(completion("one", 0), chosen=0), reason="give_up")
    found = read_step_items(write(tmp_path, right, wrong, lost), None, skip_bad_rows=True)
    assert found.form == "PRM800K"
    first, second = found.items
    assert first.steps == ["two", "by hand", "neutral"] and first.label == -1
    assert second.steps == ["one", "off"] and second.label == 1
    assert [item.final_answer_correct for item in found.items] == [True, False]
    assert (first.id, first.problem) == ("row-0", "What is 2 + 2?")
    assert [r.row for r in found.rejected] == [2] and "give_up" in found.rejected[0].reason
    loaded = load_imported(
        write(tmp_path, right, wrong), DataConfig(), CHECKER
    )  # its own reference answer
    (problem,) = loaded.problems
    assert isinstance(problem, ImportedProblem) and problem.answer == "4"
    assert [s.correct for s in problem.solutions] == [True, False]


SHEPHERD = {
    "input": "Ana has 2. How many? Step 1: She has 2. ки\nStep 2: So 3. ки\n"
    "Step 3: The answer is: 3 ки",
    "label": "Ana has 2. How many? Step 1: She has 2. +\nStep 2: So 3. -\n"
    "Step 3: The answer is: 3 -",
    "task": "GSM8K",
}


def test_math_shepherd(tmp_path: Path) -> None:
    found = read_step_items(write(tmp_path, SHEPHERD), None)
    (item,) = found.items
    assert found.form == "Math-Shepherd"
    assert item.problem == "Ana has 2. How many?"
    assert item.steps == ["She has 2.", "So 3.", "The answer is: 3"]
    assert (item.label, item.final_answer_correct, item.generator) == (1, False, "GSM8K")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": SHEPHERD["input"] + " and more"}, "does not end its steps"),
        ({"label": SHEPHERD["label"][:-3]}, "differs in step 2"),
        ({"label": SHEPHERD["label"].replace("Ana", "Bob")}, "differs in step 0"),
        ({"label": 3}, "not in the format of the first row"),
    ],
)
def test_math_shepherd_that_is_not_whole_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=f"row 1: .*{words}"):
        read_step_items(write(tmp_path, SHEPHERD, SHEPHERD | change), None)


def turns(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def genprm(verdict: str) -> str:
    thought = "<analyze>\n\\boxed{No} is what one would say at first.\n</analyze>"
    return f"{thought}<output>\n**Judgement**: $\\boxed{{{verdict}}}$\n</output>"


def test_genprm(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Review the paragraphs."}
    said = turns(
        "Question: Ana has 2.\n\nHow many?\n\nShe has 2.",
        genprm("Yes"),
        "So 3.",
        genprm("No"),
        "The end.",
    )
    found = read_step_items(write(tmp_path, {"conversations": [system, *said[:4]]}), None)
    (item,) = found.items
    assert found.form == "a conversation about steps"
    assert item.problem == "Ana has 2.\n\nHow many?"
    assert (item.steps, item.label) == (["She has 2.", "So 3."], 1)
    (item,) = read_step_items(write(tmp_path, {"messages": said}), None).items
    assert item.steps == ["She has 2.", "So 3."], "what was not judged has no label"


def test_rlhflow(tmp_path: Path) -> None:
    said = turns("Ana has 2. How many? Step 1: She has 2.", "+", "Step 2: So 3.", "-")
    (item,) = read_step_items(write(tmp_path, {"conversations": said}), None).items
    assert item.problem == "Ana has 2. How many?"
    assert (item.steps, item.label) == (["She has 2.", "So 3."], 1)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (turns("p\n\ns", "+", "t", "perhaps"), "message 3 ends with no verdict"),
        (turns("p\n\ns", "+", "t", "\\boxed{Yes}"), "message 3 ends with no verdict"),
        ([*turns("p\n\ns", "+"), *turns("t", "+")[1:]], "message 2 is of role .*out of turn"),
        (turns("p s", "+"), "where the problem ends"),
        ([*turns("p\n\ns", "+"), "t"], "message 2 .*a role and a content"),
    ],
)
def test_a_conversation_that_is_none_is_refused(
    tmp_path: Path, said: list[Any], words: str
) -> None:
    whole = {"conversations": turns("p\n\ns", "+")}
    with pytest.raises(UserError, match=f"row 1: .*{words}"):
        read_step_items(write(tmp_path, whole, {"conversations": said}), None)


def test_scores_of_a_judge_are_labels(tmp_path: Path) -> None:
    row = {"problem": "p", "steps": ["a", "b", "c"], "step_scores": [0.9, 0.5, 0.49]}
    (item,) = read_step_items(write(tmp_path, row), None).items
    assert item.label == 2
    with pytest.raises(UserError, match=r"row 1: .*step_scores, step 1 is 1\.5: a score lies"):
        read_step_items(write(tmp_path, row, row | {"step_scores": [0.1, 1.5, 0]}), None)


@pytest.mark.parametrize(
    ("row", "label", "correct"),
    [
        ({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}, 1, False),
        ({"question": "p", "steps": ["a", "b"], "labels": ["+", "+"]}, -1, True),
        ({"problem": "p", "steps": ["a", "b"], "labels": [1, 0], "correct": True}, 1, True),
        ({"problem": "p", "steps": ["a", "b"], "ratings": [0, 1]}, 0, False),
        ({"problem": "p", "steps": ["a", "b"], "ratings": [-1, 0]}, 0, False),
        ({"problem": "p", "steps": ["a", "b", "c"], "label": [1, 0, -1]}, 2, False),
        (
            {"query": "p", "steps": [{"step": "a", "label": "good"}, {"step": "b", "label": "-"}]},
            1,
            False,
        ),
        ({"problem": [{"role": "user", "content": "p"}], "steps": ["a"], "labels": [1]}, -1, True),
        ({"question": "p", "process": "a ки b ки", "label": ["+", "-"]}, 1, False),
        ({"question": "p", "process": "a \n\n\n\n\nb \n\n\n\n\n", "label": ["+", "+"]}, -1, True),
    ],
)
def test_steps_with_a_label_each(
    tmp_path: Path, row: dict[str, Any], label: int, correct: bool
) -> None:
    (item,) = read_step_items(write(tmp_path, row), None).items
    assert (item.problem, item.label, item.final_answer_correct) == ("p", label, correct)
    assert item.steps == ["a", "b", "c"][: len(item.steps)]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([True], "1 labels for 2 steps"),
        ([True, 0.4], "step 1 is 0.4"),
        ([True, "perhaps"], 'step 1 is "perhaps"'),
        ([True, None], "step 1 is null"),
        ("ab", "not a list of labels"),
    ],
)
def test_labels_that_say_nothing_are_refused(tmp_path: Path, labels: Any, words: str) -> None:
    row = {"prompt": "p", "completions": ["a", "b"], "labels": [True, True]}
    with pytest.raises(UserError, match=f"row 1: .*{words}"):
        read_step_items(write(tmp_path, row, row | {"labels": labels}), None)


def test_what_has_no_labelled_steps_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no labelled steps: its first row has \['a'\]"):
        read_step_items(write(tmp_path, {"a": 1}), None)
    with pytest.raises(UserError, match="is empty"):
        read_step_items(write(tmp_path), None)


@pytest.mark.parametrize("form", [Format.TRL, Format.MATH_SHEPHERD])
def test_what_is_exported_comes_in_again(tmp_path: Path, form: Format) -> None:
    store = write_run(tmp_path / "run")
    out = tmp_path / "out.jsonl"
    counts = export(store, form, out)
    found = read_step_items(str(out), None)
    assert len(found.items) == counts["written"] == 2 and not found.rejected
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    for item, row in zip(found.items, rows, strict=True):
        if form is Format.TRL:
            assert (item.problem, item.steps) == (row["prompt"], row["completions"])
            labels = row["labels"]
        else:
            assert row["input"].startswith(f"{item.problem} Step 1: {item.steps[0]} ки")
            labels = [mark[-1] == "+" for mark in row["label"].split("\n")]
        assert item.label == (labels.index(False) if False in labels else -1)


def test_an_export_with_everything_comes_in_again(tmp_path: Path) -> None:
    """Steps behind the last label are no items; they are there to be valued again."""
    store = write_run(tmp_path / "run")
    out = tmp_path / "out"
    assert export(store, Format.HF, out)["written"] == 2
    found = read_step_items(str(out), None)
    assert found.form == "an export of ours" and not found.rejected
    assert [item.id for item in found.items] == ["t1", "t2"]
    assert [len(item.steps) for item in found.items] == [3, 2 if found.items[1].label < 0 else 3]
    loaded = load_imported(str(out), DataConfig(), CHECKER)
    solutions = [s for p in loaded.problems if isinstance(p, ImportedProblem) for s in p.solutions]
    assert [s.steps for s in solutions] == [("one\n", "two\n\n", "three"), ("a\n", "b\n", "c")]
    assert [(p.question, p.answer) for p in loaded.problems] == [
        ("What of t1?", "7"), ("What of t2?", "7"),
    ]  # fmt: skip
    assert [(s.solution_id, s.correct) for s in solutions] == [("t1", False), ("t2", False)]
