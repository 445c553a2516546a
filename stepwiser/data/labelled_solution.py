"""A solution whose steps somebody labelled, whatever format it came in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NAMES = ("id", "uid", "idx", "trajectory_id")
"""Columns that name a solution; the first that a row has counts."""

STEP_TAG = "ки"
"""Math-Shepherd's mark after each step: one token of most vocabularies, and none of mathematics."""

WORDS = {
    "+": True, "good": True, "positive": True, "correct": True, "right": True,
    "-": False, "bad": False, "negative": False, "incorrect": False, "wrong": False,
}  # fmt: skip


@dataclass(frozen=True)
class LabelledSolution:
    """A solution as a file gives it."""

    problem: str
    steps: list[str]
    label: int
    """Index of the first wrong step, -1 where every step is right."""
    correct: bool | None
    """Of its final answer; None where the file says nothing of it."""
    solution_id: str | None = None
    answer: str | None = None
    """The problem's reference answer."""
    generator: str = ""
    written: list[str] | None = None
    """All steps, where only the leading ones that `steps` has were labelled."""
    wrong_steps: list[int] | None = None
    """All wrong steps, rising, where every step was labelled, also those after a wrong one."""
    category: str = ""
    """The kind of its mistakes."""

    @property
    def final_answer_correct(self) -> bool:
        """As the file says; where it says nothing, that no step is wrong."""
        return self.label == -1 if self.correct is None else self.correct


def first_wrong(labels: Sequence[bool]) -> int:
    """Index of the first False; -1 without one."""
    return next((index for index, label in enumerate(labels) if not label), -1)
