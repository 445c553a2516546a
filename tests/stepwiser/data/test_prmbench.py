"""PRMBench's rows become items with a label for every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepwiser.data.step_items import read_step_items
from stepwiser.errors import UserError


def row(**changes: Any) -> dict[str, Any]:
    return {
        "original_question": "What is 2 + 2 + 1?",
        "modified_question": "What is 2 + 2 + 1?",
        "original_process": ["1. 2 + 2 = 4.", "2. 4 + 1 = 5."],
        "modified_process": ["1. 2 + 2 = 4.", "2. We know it is 5.", "3. So 5 - 1 = 4, and 5."],
        "modified_steps": [2, 3],
        "error_steps": [2, 3],
        "reason": "It assumes what it is to find.",
        "idx": "p1_0",
        "question": "What is 2 + 2 + 1?",
        "classification": "circular",
    } | changes


def read(folder: Path, *rows: dict[str, Any], skip: bool = False) -> Any:
    file = folder / "prmbench.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return read_step_items(str(file), None, skip)


def test_every_step_has_a_label(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        row(),
        row(classification="multi_solutions", error_steps=[]),
        row(classification="deception", error_steps=[9, 3], modified_process=["a", "b", "c"]),
        row(),  # there again
    )
    assert found.form == "PRMBench" and not found.twice
    circular, right, deceiving = found.items
    assert circular.id == "circular_p1_0" and circular.category == "circular"
    assert circular.steps == ["2 + 2 = 4.", "We know it is 5.", "So 5 - 1 = 4, and 5."]
    assert (circular.label, circular.wrong_steps, circular.final_answer_correct) == (
        1,
        [1, 2],
        False,
    )
    assert (right.label, right.wrong_steps, right.final_answer_correct) == (-1, [], True)
    # A step that is not there labels nothing, and numbers go only where every step has its own.
    assert (deceiving.wrong_steps, deceiving.steps) == ([2], ["a", "b", "c"])


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="error_steps holds 0: steps are counted from 1"):
        read(tmp_path, row(error_steps=[0]))
    found = read(tmp_path, row(), row(idx="b", modified_process=[]), skip=True)
    assert len(found.items) == len(found.rejected) == 1
