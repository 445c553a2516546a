"""What the steps of a training read of an annotation that went on meanwhile.

`train/prompt_reads.jsonl` in the run directory has a line for every round of sampling prompts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from stepwiser.annotation.label_rules import LabelRule
from stepwiser.annotation.prefixes import PrefixTable
from stepwiser.data.records import content_id, group_by
from stepwiser.run.store import RunStore, objects_of
from stepwiser.run.units import read_unit
from stepwiser.storage.lines import add_line, line_bytes
from stepwiser.storage.places import open_storage

READ_LOG = "train/prompt_reads.jsonl"
OLD_READ_LOG = "train/draws.jsonl"
"""Its name before 0.2; a run that has it goes on with it."""


@dataclass(frozen=True)
class PromptRead:
    """Prompts of one step; ``number`` counts the further ones that it asked for."""

    step: int
    number: int
    prompts: tuple[str, ...]


class PromptReadLog:
    """The file of prompts read; one process writes it."""

    def __init__(self, run: str) -> None:
        """``run``: path or address of a run directory."""
        self._storage = open_storage("run_dir", run)
        self._name = OLD_READ_LOG if self._storage.exists(OLD_READ_LOG) else READ_LOG

    def read(self) -> list[PromptRead]:
        """Oldest first; nothing if there is no file yet. A line that was not written whole is left
        out: nobody has read what it says."""
        rows = objects_of(line_bytes(self._storage, self._name).splitlines())
        return [
            # Before 0.2 a round was called a draw.
            PromptRead(
                row["step"], int(row.get("round", row.get("draw", 0))), tuple(row["prompts"])
            )
            for row in rows
        ]

    def add(self, read: PromptRead) -> None:
        row = {"step": read.step, "round": read.number, "prompts": read.prompts}
        add_line(self._storage, self._name, json.dumps(row))


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
