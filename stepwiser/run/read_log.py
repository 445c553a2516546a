"""What the steps of a training read of an annotation that went on meanwhile.

`train/prompt_reads.jsonl` in the run directory has a line for every round of sampling prompts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from stepwiser.annotation.label_rules import LabelRule
from stepwiser.annotation.prefixes import PrefixTable
from stepwiser.data.records import content_id, group_by
from stepwiser.run.store import RunStore, json_lines
from stepwiser.run.units import read_unit

READ_LOG = "train/prompt_reads.jsonl"
OLD_READ_LOG = "train/draws.jsonl"
"""Its name before 0.2; a run that has it goes on with it."""


def read_log_path(store: RunStore) -> Path:
    """The file of a run."""
    old = store.root / OLD_READ_LOG
    return old if old.is_file() else store.root / READ_LOG


@dataclass(frozen=True)
class PromptRead:
    """Prompts of one step; ``number`` counts the further ones that it asked for."""

    step: int
    number: int
    prompts: tuple[str, ...]


class PromptReadLog:
    """The file of prompts read; one process writes it."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def read(self) -> list[PromptRead]:
        """Oldest first; nothing if there is no file yet. A line that is not whole is left out, as
        `repair` leaves it out."""
        rows = json_lines(self._path)
        return [
            # Before 0.2 a round was called a draw.
            PromptRead(
                row["step"], int(row.get("round", row.get("draw", 0))), tuple(row["prompts"])
            )
            for row in rows
        ]

    def repair(self) -> None:
        """Cut off a last line that was not written whole: nobody has read what it says."""
        if self._path.is_file():
            text = self._path.read_bytes()
            whole = text[: text.rfind(b"\n") + 1]
            if len(whole) < len(text):
                self._path.write_bytes(whole)

    def add(self, read: PromptRead) -> None:
        row = {"step": read.step, "round": read.number, "prompts": read.prompts}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def count_reads(reads: Iterable[PromptRead]) -> Counter[str]:
    """How often each prompt was read, by its id."""
    return Counter(prompt for read in reads for prompt in read.prompts)


def rollouts_read(
    store: RunStore, units: Iterable[str], read: Collection[str], rule: LabelRule
) -> tuple[int, int]:
    """Rollouts that stand behind labels which some step has read, and all rollouts.

    A label stands on those of its own prefix and, unless the rule is Abs-Q, of the prefix before.
    Those of a prefix that several trajectories share count once.
    """
    used = total = 0
    for unit in units:
        trajectories, values = read_unit(store, unit)
        for group in group_by(trajectories, "problem_id").values():
            table = PrefixTable(group)
            trials: dict[int, int] = {}
            wanted: set[int] = set()
            for keys, trajectory in zip(table.of, group, strict=True):
                own = values.get(trajectory.trajectory_id, [])
                # The last chunk has no prefix of its own: its value is the outcome.
                trials |= {key: v.trials for key, v in zip(keys, own, strict=False)}
                for chunk in range(len(own)):
                    if content_id(trajectory.trajectory_id, chunk) in read:
                        previous = rule.definition.reads_previous
                        first = max(0, chunk - 1) if previous else chunk
                        wanted.update(keys[first : chunk + 1])
            used += sum(trials[key] for key in wanted)
            total += sum(trials.values())
    return used, total
