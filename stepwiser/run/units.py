"""Units of annotation on disk: what is planned, what is finished, and the rows of each.

`annotate/plan.json` names every unit of the run in order; `annotate/log-*.jsonl` has one line for
each unit that a driver saw finish. The summary in `units/` decides whether a unit is done: the log
only saves a reader from opening ten thousand of them, and what it lacks is read from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from stepwiser.annotation.stopping import Question, trajectory_labels
from stepwiser.annotation.throughput import CounterSnapshot
from stepwiser.config.annotation import Shard
from stepwiser.data.records import ChunkValue, Trajectory, content_id, group_by
from stepwiser.prompting.hub.files import WEIGHTS
from stepwiser.prompting.hub.reference import hub_model
from stepwiser.run.store import (
    RunStore,
    json_lines,
    read_object,
    read_rows,
    unreadable,
)
from stepwiser.storage.folder import is_temporary

DIFFICULTIES = ("all_right", "mixed_problems", "all_wrong")
"""What becomes of a problem; only mixed ones are annotated."""

PLAN = "annotate/plan.json"

REPEATS = "repeats"
TABLES = ("trajectories", "values", REPEATS)
"""Tables with a file for each unit; the last one only of units that have something in it."""


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


def sweep(store: RunStore, units: Collection[str]) -> None:
    """Remove what killed writers left half-written of these units; nobody may be at them now."""
    for table in (*TABLES, "units"):
        with contextlib.suppress(FileNotFoundError), os.scandir(store.table_dir(table)) as entries:
            for entry in entries:
                if is_temporary(entry.name) and entry.name.split(".")[1] in units:
                    # Another start may sweep too.
                    Path(entry.path).unlink(missing_ok=True)


def is_finished(store: RunStore, unit: str) -> bool:
    """Whether the rows of a unit are whole."""
    return _summary(store, unit).is_file()


def read_unit(store: RunStore, unit: str) -> tuple[list[Trajectory], dict[str, list[ChunkValue]]]:
    """Trajectories of one finished unit and their values by trajectory, in chunk order.

    Raises UserError, naming the file, where one is missing or not whole.
    """
    trajectories = read_rows(store.table_dir("trajectories") / f"{unit}.parquet", Trajectory)
    values = read_rows(store.table_dir("values") / f"{unit}.parquet", ChunkValue)
    by_trajectory = group_by(values, "trajectory_id")
    for rows in by_trajectory.values():
        rows.sort(key=lambda value: value.chunk_index)
    return trajectories, by_trajectory


def read_repeats(store: RunStore, unit: str) -> dict[str, list[ChunkValue]]:
    """Second values of a finished unit by trajectory, Q_0 first (`annotate.repeat_share`).

    Raises UserError, naming the file, where it is not whole.
    """
    path = store.table_dir(REPEATS) / f"{unit}.parquet"
    if not path.is_file():
        return {}
    by_trajectory = group_by(read_rows(path, ChunkValue), "trajectory_id")
    for rows in by_trajectory.values():
        rows.sort(key=lambda value: value.chunk_index)
    return by_trajectory


def read_summary(store: RunStore, unit: str) -> dict[str, Any]:
    """`counts`, `rejects` and `seconds` of one finished unit.

    Raises UserError, naming the file, where it is not whole.
    """
    path = _summary(store, unit)
    summary = read_object(path)
    if not _are_counts(summary.get("counts")) or not isinstance(summary.get("rejects"), list):
        raise unreadable(path, "it lacks counts or rejects")
    return summary


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(n, int | float) for n in value.values())


def _summary(store: RunStore, unit: str) -> Path:
    return store.table_dir("units") / f"{unit}.json"


def summarize(store: RunStore, units: Iterable[str]) -> dict[str, Any]:
    """Sum of what the units counted; each reject says which unit it is of."""
    # What never happened is counted too: the report shows a missing figure as unknown.
    counts: Counter[str] = Counter(dict.fromkeys(DIFFICULTIES, 0))
    rejects: list[dict[str, str]] = []
    number = 0
    for unit in units:
        summary = read_summary(store, unit)
        counts.update(summary["counts"])
        rejects += [{**reject, "unit": unit} for reject in summary["rejects"]]
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
    """Name the weights of a model: by their content, of one on the Hub by its commit.

    Models without weights have the same name.
    """
    if (hub := hub_model(str(model))) is not None and hub.commit is not None:
        return content_id(str(hub))
    # As they are loaded: pickled ones only where there are no others.
    found = (sorted(Path(model).glob(pattern)) for pattern in WEIGHTS)
    files = next((files for files in found if files), [])
    return content_id(*map(fingerprint, files))


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
    """What `write_plan` wrote; None before annotation ever started.

    Raises UserError where the file is not whole.
    """
    path = store.root / PLAN
    if not path.is_file():
        return None
    plan = read_object(path)
    if not isinstance(plan.get("units"), list) or not isinstance(plan.get("problems"), int):
        raise unreadable(path, "it lacks units or problems")
    return plan


def planned_units(store: RunStore, shard: Shard) -> list[str]:
    """Names of the shard's units, in order; none before annotation ever started."""
    plan = read_plan(store) or {"units": []}
    return [unit for position, unit in enumerate(plan["units"]) if shard.owns(position)]


@dataclass(frozen=True)
class UnitLog:
    """The driver's diary of one shard: a line for its start, for each finished unit, now and then
    one for its engines, and one for its end.

    Only the one driver of a shard writes to its file.
    """

    store: RunStore
    shard: Shard

    @property
    def path(self) -> Path:
        return self.store.root / "annotate" / f"log-{self.shard.index}-of-{self.shard.count}.jsonl"

    def start(self, gpus: float, units: int) -> None:
        """Work begins on so many units; so many GPUs are planned."""
        self._add({"event": "start", "gpus": gpus, "units": units})

    def finished(self, unit: str, counts: Mapping[str, int]) -> None:
        self._add({"event": "unit", "unit": unit, "counts": dict(counts)})

    def engines(self, gpus: float, gpu_seconds: float, look: CounterSnapshot) -> None:
        """So many GPUs are held now, and so many GPU-seconds were since the start.

        ``look``: counters of the engines that were up since the line before, written as a list in
        the order of `EngineCounters`' fields.
        """
        engines = {index: [round(x, 2) for x in astuple(one)] for index, one in look.items()}
        held = round(gpu_seconds, 2)
        self._add({"event": "engines", "gpus": gpus, "gpu_seconds": held, "engines": engines})

    def end(self) -> None:
        """Work ended, well or not; a killed driver leaves no such line."""
        self._add({"event": "end"})

    def _add(self, event: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": time.time(), **event}, separators=(",", ":"))
        # One write a line, unbuffered: lines of several threads do not mix, and a reader in another
        # terminal sees whole ones, or a last one without its newline, which `read_log` leaves out.
        with self.path.open("a+b", buffering=0) as file:
            if event["event"] == "start" and file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    line = "\n" + line  # after what a killed driver or a full disk cut off
            file.write(line.encode() + b"\n")


EVENTS: dict[str, tuple[str, ...]] = {
    "start": ("gpus",),
    "unit": ("unit", "counts"),
    "engines": ("gpus", "gpu_seconds", "engines"),
    "end": (),
}
"""What each line of a log says besides its time."""


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Events of one driver, oldest first; lines that are not whole are left out: the last while it
    is being written, and one that was cut off, whose unit the summaries know."""
    for event in json_lines(path):
        needed = EVENTS.get(str(event.get("event")))
        numbers = [event.get(name) for name in ("time", "gpus", "gpu_seconds") if name in event]
        if needed is None or "time" not in event or not event.keys() >= set(needed):
            continue
        if not all(isinstance(number, int | float) for number in numbers):
            continue
        if _are_counts(event.get("counts", {})) and isinstance(event.get("engines", {}), dict):
            yield event


def log_files(store: RunStore) -> list[Path]:
    """The diaries of all shards."""
    return sorted((store.root / "annotate").glob("log-*.jsonl"))
