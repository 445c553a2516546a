"""PRMBench's rows (arXiv 2501.03124): a right solution that was made wrong, every step labelled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stepwiser.data.cells import array, problem_text, text, whole
from stepwiser.data.cells import steps as steps_of
from stepwiser.data.files import BadRow
from stepwiser.data.labelled_solution import LabelledSolution

COLUMNS = {"modified_question", "modified_process", "error_steps", "classification"}


def is_prmbench(row: Mapping[str, Any]) -> bool:
    """Whether a row has its columns."""
    return row.keys() >= COLUMNS


def read_prmbench(row: Mapping[str, Any], rated: bool) -> LabelledSolution:
    """The solution as it was modified; the original one is not read.

    ``error_steps`` count from 1, and some lie behind the last step: they label nothing, as in the
    benchmark's own evaluation. A solution without any is right (`multi_solutions`). Raises BadRow.
    """
    category = text(row["classification"], "classification")
    steps = steps_of(row["modified_process"], "modified_process")
    if not steps:
        raise BadRow("column modified_process holds no step")
    errors = [whole(n, "error_steps") for n in array(row["error_steps"], "error_steps", "steps")]
    if errors and min(errors) < 1:
        raise BadRow(f"column error_steps holds {min(errors)}: steps are counted from 1")
    wrong = sorted({number - 1 for number in errors if number <= len(steps)})
    name = text(row.get("idx"), "idx")
    return LabelledSolution(
        problem_text(row["modified_question"], "modified_question"),
        _unnumbered(steps),
        wrong[0] if wrong else -1,
        None,
        # One solution was modified in several ways, and has one name in all of them.
        f"{category}_{name}" if name else None,
        generator="PRMBench",
        wrong_steps=wrong,
        category=category,
    )


def _unnumbered(steps: list[str]) -> list[str]:
    """Steps without the numbers that were written before them, where each begins with its own."""
    numbers = [re.match(rf"\s*(?:step\s*)?{i}[.:]\s+", s, re.I) for i, s in enumerate(steps, 1)]
    if not all(numbers):
        return steps
    return [step[match.end() :] for step, match in zip(steps, numbers, strict=True) if match]
