"""Units of annotation on disk: what is planned, what is finished, and the rows of each.

`annotate/plan.json` names every unit of the run in order; `annotate/log-*.jsonl` has one line for
each unit that a driver saw finish. The summary in `units/` decides whether a unit is done: the log
only saves a reader from opening ten thousand of them, and what it lacks is read from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwiser.records import ChunkValue, Trajectory, content_id, group_by
from stepwiser.shard import Shard
from stepwiser.stopping import Question, trajectory_labels
from stepwiser.store import RunStore

DIFFICULTIES = ("all_right", "mixed_problems", "all_wrong")
"""What becomes of a problem; only mixed ones are annotated."""

PLAN = "annotate/plan.json"


def finished_units(store: RunStore) -> set[str]:
    """Names of the units whose rows are whole."""
    folder = store.table_dir("units")
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {
            entry.name.removesuffix(".json")
            for entry in entries
            if entry.name.endswith(".json") and not entry.name.startswith(".")
        }


def read_unit(store: RunStore, unit: str) -> tuple[list[Trajectory], dict[str, list[ChunkValue]]]:
    """Trajectories of one finished unit and their values by trajectory, in chunk order."""
    import pyarrow.parquet as pq

    trajectories = pq.read_table(store.table_dir("trajectories") / f"{unit}.parquet")
    values = pq.read_table(store.table_dir("values") / f"{unit}.parquet")
    by_trajectory = group_by(ChunkValue.from_table(values), "trajectory_id")
    for rows in by_trajectory.values():
        rows.sort(key=lambda value: value.chunk_index)
    return Trajectory.from_table(trajectories), by_trajectory


def read_summary(store: RunStore, unit: str) -> dict[str, Any]:
    """`counts`, `rejects` and `seconds` of one finished unit."""
    summary: dict[str, Any] = json.loads((store.table_dir("units") / f"{unit}.json").read_text())
    return summary


def summarize(store: RunStore, units: Iterable[str]) -> dict[str, Any]:
    """Sum of what the units counted."""
    # What never happened is counted too: the report shows a missing figure as unknown.
    counts: Counter[str] = Counter(dict.fromkeys(DIFFICULTIES, 0))
    rejects: list[dict[str, str]] = []
    number = 0
    for unit in units:
        summary = read_summary(store, unit)
        counts.update(summary["counts"])
        rejects += summary["rejects"]
        number += 1
    return {"units": number, "counts": dict(counts), "rejects": rejects}


def count_labels(
    question: Question, trajectories: Iterable[Trajectory], values: Iterable[ChunkValue]
) -> Counter[str]:
    """How many chunks have a label by the rule (`labelled: …`), and a Positive one (`positive: …`).

    Counted unit by unit, so that the shares can be watched while annotation goes on.
    """
    by_trajectory = group_by(list(values), "trajectory_id")
    counts: Counter[str] = Counter()
    for trajectory in trajectories:
        own = by_trajectory.get(trajectory.trajectory_id, [])
        labels = [y for y in trajectory_labels(question, trajectory, own) if y is not None]
        counts[f"labelled: {question.rule}"] += len(labels)
        counts[f"positive: {question.rule}"] += sum(labels)
    return counts


def weights_id(model: str | Path) -> str:
    """Name the weights of a model directory by their content."""
    return content_id(*(fingerprint(file) for file in sorted(Path(model).glob("*.safetensors"))))


def fingerprint(file: Path, sample: int = 2**20) -> str:
    """Hash of a file's size, beginning and end: enough to tell training runs' weights apart."""
    digest = hashlib.sha256(str(file.stat().st_size).encode())
    with file.open("rb") as handle:
        digest.update(handle.read(sample))
        handle.seek(max(0, file.stat().st_size - sample))
        digest.update(handle.read())
    return digest.hexdigest()


# --- plan and log ---------------------------------------------------------------------------------


def write_plan(store: RunStore, units: Sequence[str], problems: int) -> None:
    """Say what annotation is going to do: unit names in order, and how many problems they hold."""
    store.write_json(PLAN, {"units": list(units), "problems": problems})


def read_plan(store: RunStore) -> dict[str, Any] | None:
    """What `write_plan` wrote; None before annotation ever started."""
    path = store.root / PLAN
    return json.loads(path.read_text()) if path.is_file() else None


@dataclass(frozen=True)
class UnitLog:
    """The driver's diary of one shard: a line for its start, for each finished unit, for its end.

    Only the one driver of a shard writes to its file.
    """

    store: RunStore
    shard: Shard

    @property
    def path(self) -> Path:
        return self.store.root / "annotate" / f"log-{self.shard.index}-of-{self.shard.count}.jsonl"

    def start(self, gpus: float, units: int) -> None:
        """Work begins on so many units with so many GPUs."""
        self._add({"event": "start", "gpus": gpus, "units": units})

    def finished(self, unit: str, counts: Mapping[str, int]) -> None:
        self._add({"event": "unit", "unit": unit, "counts": dict(counts)})

    def end(self) -> None:
        """Work ended, well or not; a killed driver leaves no such line."""
        self._add({"event": "end"})

    def _add(self, event: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": time.time(), **event}, separators=(",", ":"))
        # One write a line: a reader in another terminal sees whole lines, or a last one without
        # its newline, which `read_log` leaves out.
        with self.path.open("a") as file:
            file.write(line + "\n")


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Events of one driver, oldest first; a line that is still being written is left out."""
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def log_files(store: RunStore) -> list[Path]:
    """The diaries of all shards."""
    return sorted((store.root / "annotate").glob("log-*.jsonl"))
