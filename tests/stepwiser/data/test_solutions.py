"""Solutions to be judged, in every form that people have them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepwiser.data.records import Trajectory
from stepwiser.data.solutions import read_solutions
from stepwiser.errors import UserError


def _write(folder: Path, *rows: Any) -> Path:
    path = folder / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


STEPS = ["one\n", "two"]


@pytest.mark.parametrize(
    ("row", "steps", "response", "label"),
    [
        ({"id": "a", "problem": "p", "steps": STEPS, "label": 1, "final_answer_correct": False},
         STEPS, None, 1),
        ({"id": "a", "prompt": "p", "completions": STEPS, "labels": [True, True]}, STEPS, None, -1),
        ({"id": "a", "problem": "p", "steps": STEPS}, STEPS, None, None),
        ({"id": "a", "problem": "p", "steps": json.dumps(STEPS)}, STEPS, None, None),
        ({"trajectory_id": "a", "question": "p", "chunks": STEPS}, STEPS, None, None),
        ({"id": "a", "problem": "p", "solution": "one\n\ntwo", "answer": "2"},
         None, "one\n\ntwo", None),
        ({"id": "a", "prompt": [{"role": "user", "content": "p"}],
          "completion": [{"role": "assistant", "content": "one\n\ntwo"}]},
         None, "one\n\ntwo", None),
    ],
)  # fmt: skip
def test_every_form_is_read(
    tmp_path: Path, row: dict, steps: list[str] | None, response: str | None, label: int | None
) -> None:
    (found,) = read_solutions(_write(tmp_path, row)).solutions
    assert (found.name, found.problem, found.steps, found.response, found.first_wrong) == (
        "a", "p", steps, response, label
    )  # fmt: skip
    assert found.answer == row.get("answer")


def test_own_trajectories_are_read(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    row = Trajectory("t", "p1", "p", "2", [1, 2], STEPS, [1, 2], "2", True, 1, 2)
    pq.write_table(Trajectory.to_table([row]), tmp_path / "u.parquet")
    (found,) = read_solutions(tmp_path / "u.parquet").solutions
    assert (found.name, found.steps, found.answer) == ("t", STEPS, "2")
    assert found.final_answer_correct is True


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    good = {"problem": "p", "steps": STEPS}
    rows = [good, {"problem": "p"}, {"steps": STEPS}, good | {"steps": [{}]}, [1], good | {"id": 7}]
    found = read_solutions(_write(tmp_path, *rows))
    assert [one.name for one in found.solutions] == ["row-0", "7"]
    reasons = {row.index: why for row, why in found.bad}
    assert reasons.keys() == {1, 2, 3, 4}
    assert "no solution among its columns" in reasons[1]
    assert "no problem among its columns" in reasons[2]
    twice = read_solutions(_write(tmp_path, *[good | {"id": "x"}] * 2))
    assert [one.name for one in twice.solutions] == ["x", "x~2"] and "'x'" in twice.notices[0]
    with pytest.raises(UserError, match="none of 1 rows can be judged: row 0: no solution"):
        read_solutions(_write(tmp_path, {"problem": "p"}))
    with pytest.raises(UserError, match="does not exist"):
        read_solutions(tmp_path / "none.jsonl")
