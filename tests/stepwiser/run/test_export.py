"""What goes out comes back: each format is read by its own reader and compared with the run."""

import json
from pathlib import Path
from typing import Any

import pytest

from stepwiser.annotation.label_rules import LabelRule
from stepwiser.config import RunConfig
from stepwiser.errors import UserError
from stepwiser.run.export import Format, export
from stepwiser.run.store import RunStore
from tests.stepwiser.run.annotated_run import trajectory, values, write_run, write_unit


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return write_run(tmp_path / "run", RunConfig(label={"rule": "abs_q"}))


def test_a_dataset_holds_everything(store: RunStore, tmp_path: Path) -> None:
    from datasets import load_from_disk

    counts = export(store, Format.HF, tmp_path / "out")
    assert counts == {"written": 2, "steps": 5, "positive": 3}
    rows = list(load_from_disk(str(tmp_path / "out")))
    first = rows[0]
    assert [row["trajectory_id"] for row in rows] == ["t1", "t2"]
    assert first["problem"] == "What of t1?" and first["steps"] == ["one\n", "two\n\n", "three"]
    assert first["values"] == [0.75, 0.25, 0.0]
    assert first["successes"] == [3, 1, 0] and first["trials"] == [4, 4, 1]
    assert first["is_outcome"] == [False, False, True]
    assert first["rule"] == "abs_q" and first["labels"] == [True, True, False]
    assert first["labels_abs_q"] == first["labels"]
    # Q falls from 0.5 over 0.75 to 0.25: a third of it is less than 0.7.
    assert first["labels_rel_ratio"] == [True, False, False]
    assert rows[1]["labels"] == [True, False], "annotation stopped after the second of three"
    assert len(rows[1]["steps"]) == 3
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_trl_stepwise_supervision(store: RunStore, tmp_path: Path) -> None:
    from datasets import load_dataset

    out = tmp_path / "trl.jsonl"
    export(store, Format.TRL, out)
    rows = load_dataset(
        "json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows.column_names == ["prompt", "completions", "labels"]
    assert list(rows) == [
        {
            "prompt": "What of t1?",
            "completions": ["one", "two", "three"],
            "labels": [True, True, False],
        },
        {"prompt": "What of t2?", "completions": ["a", "b"], "labels": [True, False]},
    ]


def read_shepherd(row: dict[str, Any]) -> tuple[str, list[str], list[bool]]:
    """Problem, steps and labels as users of the data read them: by the position of the tags."""
    text, marked = row["input"].replace("ки", "\0"), row["label"]
    assert len(text) == len(marked)
    places = [i for i, character in enumerate(text) if character == "\0"]
    problem, _, solution = text.partition(" Step 1: ")
    steps = [part.strip() for part in solution.split("\0")[:-1]]
    steps[1:] = [step.split(": ", 1)[1] for step in steps[1:]]
    assert {marked[i] for i in places} <= {"+", "-"}
    return problem, steps, [marked[i] == "+" for i in places]


def test_math_shepherd(store: RunStore, tmp_path: Path) -> None:
    out = tmp_path / "shepherd.jsonl"
    export(store, Format.MATH_SHEPHERD, out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[1] == {
        "input": "What of t2? Step 1: a ки\nStep 2: b ки",
        "label": "What of t2? Step 1: a +\nStep 2: b -",
        "task": "embedded",
    }
    assert [read_shepherd(row) for row in rows] == [
        ("What of t1?", ["one", "two", "three"], [True, True, False]),
        ("What of t2?", ["a", "b"], [True, False]),
    ]


def test_a_text_with_the_step_tag_is_left_out_and_counted(store: RunStore, tmp_path: Path) -> None:
    russian, unvalued = trajectory("t3", ("точки", "b", "c")), trajectory("t4")
    write_unit(store, "cccc", [(russian, values(russian)), (unvalued, [])])
    counts = export(store, Format.MATH_SHEPHERD, tmp_path / "out.jsonl")
    assert counts["written"] == 2
    assert counts["left out: its text holds the step tag ки"] == 1
    assert counts["left out: no step has a label"] == 1


def test_another_rule_and_the_steps_the_label_stage_skips(tmp_path: Path) -> None:
    label = {"rule": "rel_ratio", "minimum_previous_value": 0.3}
    store = write_run(tmp_path / "run", RunConfig(label=label))
    for rule, labels in ((None, [True, False]), (LabelRule.ABS_Q, [True, True])):
        out = tmp_path / f"{rule}.jsonl"
        export(store, Format.TRL, out, rule)
        # The third step follows a prefix valued 0.25, so the run has no label for it.
        assert json.loads(out.read_text().splitlines()[0])["labels"] == labels


def test_what_cannot_be_exported_is_named(store: RunStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        export(RunStore(tmp_path), Format.HF, tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        export(store, Format.HF, tmp_path / "there")
    empty = RunStore(tmp_path / "empty").open(RunConfig())
    with pytest.raises(UserError, match="stepwiser annotate"):
        export(empty, Format.TRL, tmp_path / "out")


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    """Units are read as they are written out, not beforehand."""
    store = write_run(tmp_path / "run")
    import stepwiser.run.export as formats

    rows = formats.labelled_trajectories(store, store.config().label)
    assert next(rows).trajectory.trajectory_id == "t1"
    (store.table_dir("trajectories") / "bbbb.parquet").unlink()
    with pytest.raises(UserError, match=r"bbbb\.parquet cannot be read: it is not there"):
        next(rows)
