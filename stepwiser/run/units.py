"""Units of annotation: what is planned, what is finished, and the rows of each.

`annotate/plan.json` names every unit of the run in order; `annotate/log-*.jsonl` has one line for
each unit that a driver saw finish. The summary in `units/` decides whether a unit is done: the log
only saves a reader from opening ten thousand of them, and what it lacks is read from there.

At an address several clusters may have computed the same unit. Each writes its rows under a name of
its own, and the summary, which says that name, goes up only where there is none yet: so one of them
counts, with its own rows, and the others learn that they were late.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwiser.annotation.stopping import Question, trajectory_labels
from stepwiser.annotation.throughput import CounterSnapshot
from stepwiser.config.addresses import object_address
from stepwiser.config.annotation import Shard
from stepwiser.data.records import ChunkValue, Trajectory, content_id, group_by
from stepwiser.prompting.hub.files import WEIGHTS
from stepwiser.prompting.hub.reference import hub_model
from stepwiser.run.store import (
    FETCHES,
    RunStore,
    json_lines,
    read_object,
    read_rows,
    unreadable,
)
from stepwiser.storage.folder import Folder, is_temporary
from stepwiser.storage.lines import add_line
from stepwiser.storage.places import open_storage
from stepwiser.storage.trees import fingerprint, read_version

if TYPE_CHECKING:
    import pyarrow as pa

DIFFICULTIES = ("all_right", "mixed_problems", "all_wrong")
"""What becomes of a problem; only mixed ones are annotated."""

PLAN = "annotate/plan.json"

REPEATS = "repeats"
TABLES = ("trajectories", "values", REPEATS)
"""Tables with a file for each unit; the last one only of units that have something in it."""


def finished_units(store: RunStore) -> set[str]:
    """Names of the units whose rows are whole."""
    if store.remote:
        return {Path(name).stem for name in store.storage.names("units")}
    folder = store.table_dir("units")
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {
            entry.name.removesuffix(".json")
            for entry in entries
            if entry.name.endswith(".json") and not entry.name.startswith(".")
        }


def finished_among(store: RunStore, units: Collection[str]) -> set[str]:
    """Which of these units are finished; cheaper than `finished_units` where few of many are left.

    At an address a list is a request for a thousand units, and a look one for each.
    """
    if store.remote and len(units) <= FETCHES:
        with ThreadPoolExecutor(FETCHES) as threads:
            there = list(threads.map(lambda unit: is_finished(store, unit), units))
        return {unit for unit, done in zip(units, there, strict=True) if done}
    return finished_units(store).intersection(units)


def sweep(store: RunStore, units: Collection[str]) -> None:
    """Remove what killed writers left half-written of these units.

    At an address nothing is half-written, and what others wrote of a unit is not ours to remove.
    """
    if isinstance(store.storage, Folder):
        for table in (*TABLES, "units"):
            _sweep(store.storage, table, units)


def _sweep(folder: Folder, table: str, units: Collection[str]) -> None:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder.root / table) as entries:
        for entry in entries:
            unit = entry.name.split(".")[1] if is_temporary(entry.name) else ""
            if unit in units:
                # Who writes has the lock: what is there now is a dead one's.
                with folder.locked(_lock_of(unit)):
                    Path(entry.path).unlink(missing_ok=True)


def _lock_of(unit: str) -> str:
    """Names are hashes: writers of two units seldom meet, and a folder has few locks."""
    return f"units/{unit[0]}"


def is_finished(store: RunStore, unit: str) -> bool:
    """Whether the rows of a unit are whole."""
    return store.has(_summary(unit))


def write_unit(
    store: RunStore, unit: str, tables: Mapping[str, pa.Table], summary: Mapping[str, Any]
) -> bool:
    """Write the rows of a unit, and last the summary that says it is done.

    Returns False where another was faster: the unit has the other's rows and summary then, and
    these are gone.
    """
    if isinstance(store.storage, Folder):
        # Names of rows are the unit's there, so that one of several writers writes at a time.
        with store.storage.locked(_lock_of(unit)):
            if is_finished(store, unit):
                return False
            for name, table in tables.items():
                store.write_table(name, unit, table)
            store.write_json(_summary(unit), summary)
        return True
    rows = f"{unit}.{secrets.token_hex(6)}"
    for name, table in tables.items():
        store.write_table(name, rows, table)
    said = {**summary, ROWS: rows, WRITTEN: list(tables), "time": time.time()}
    text = json.dumps(said, allow_nan=True)
    first = store.storage.create(_summary(unit), text.encode())
    for name in () if first else tables:
        store.remove(f"{name}/{rows}.parquet")
    return first


ROWS = "rows"
"""In a summary: the name of the unit's files of rows, where that is not the unit's."""
WRITTEN = "tables"
"""In a summary that has `ROWS`: the tables with such a file."""
BY = "by"
"""In a summary: the start that computed the unit, as its leases call it."""


def read_unit(store: RunStore, unit: str) -> tuple[list[Trajectory], dict[str, list[ChunkValue]]]:
    """Trajectories of one finished unit and their values by trajectory, in chunk order.

    Raises UserError, naming the file, where one is missing or not whole.
    """
    trajectories_file, values_file = (rows_file(store, name, unit) for name in TABLES[:2])
    trajectories = read_rows(trajectories_file, Trajectory)
    values = read_rows(values_file, ChunkValue)
    by_trajectory = group_by(values, "trajectory_id")
    for rows in by_trajectory.values():
        rows.sort(key=lambda value: value.chunk_index)
    return trajectories, by_trajectory


def read_repeats(store: RunStore, unit: str) -> dict[str, list[ChunkValue]]:
    """Second values of a finished unit by trajectory, Q_0 first (`annotate.repeat_share`).

    Raises UserError, naming the file, where it is not whole.
    """
    path = rows_file(store, REPEATS, unit)
    if not path.is_file():
        return {}
    by_trajectory = group_by(read_rows(path, ChunkValue), "trajectory_id")
    for rows in by_trajectory.values():
        rows.sort(key=lambda value: value.chunk_index)
    return by_trajectory


def rows_file(store: RunStore, table: str, unit: str) -> Path:
    """The file with a finished unit's rows in one of the tables, on this machine; of `repeats`
    there may be none."""
    if not store.remote:
        return store.table_dir(table) / f"{unit}.parquet"
    summary = read_summary(store, unit)
    path = store.root / table / f"{summary.get(ROWS, unit)}.parquet"
    # A name of rows is used once: what is here is what is there.
    if path.is_file() or table not in summary.get(WRITTEN, TABLES):
        return path
    return store.file(f"{table}/{path.name}")


def rows_files(store: RunStore, table: str, units: Sequence[str]) -> list[Path]:
    """`rows_file` of many units; at an address they are fetched at the same time."""
    if not store.remote:
        return [rows_file(store, table, unit) for unit in units]
    with ThreadPoolExecutor(FETCHES) as threads:
        return list(threads.map(lambda unit: rows_file(store, table, unit), units))


def read_summary(store: RunStore, unit: str) -> dict[str, Any]:
    """`counts`, `rejects` and `seconds` of one finished unit.

    Raises UserError, naming the file, where it is not whole.
    """
    summary = read_object(store.file(_summary(unit)))
    if not _are_counts(summary.get("counts")) or not isinstance(summary.get("rejects"), list):
        raise unreadable(store.called(_summary(unit)), "it lacks counts or rejects")
    return summary


def read_summaries(store: RunStore, units: Iterable[str]) -> Iterator[dict[str, Any]]:
    """`read_summary` of many units, in order; at an address they are fetched at the same time."""
    if not store.remote:
        yield from (read_summary(store, unit) for unit in units)
        return
    with ThreadPoolExecutor(FETCHES) as threads:
        yield from threads.map(lambda unit: read_summary(store, unit), units)


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(n, int | float) for n in value.values())


def _summary(unit: str) -> str:
    return f"units/{unit}.json"


def summarize(store: RunStore, units: Iterable[str]) -> dict[str, Any]:
    """Sum of what the units counted; each reject says which unit it is of."""
    # What never happened is counted too: the report shows a missing figure as unknown.
    counts: Counter[str] = Counter(dict.fromkeys(DIFFICULTIES, 0))
    rejects: list[dict[str, str]] = []
    number = 0
    units = list(units)
    for unit, summary in zip(units, read_summaries(store, units), strict=True):
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
    if object_address(model):
        version = read_version(open_storage("model", model))
        known = dict(sorted(version.files.items())) if version else {}
        there = ([known[f] for f in known if fnmatch(f, pattern)] for pattern in WEIGHTS)
        return content_id(*next((prints for prints in there if prints), []))
    found = (sorted(Path(model).glob(pattern)) for pattern in WEIGHTS)
    files = next((files for files in found if files), [])
    return content_id(*map(fingerprint, files))


# --- plan and log ---------------------------------------------------------------------------------


def write_plan(store: RunStore, units: Sequence[str], problems: int) -> None:
    """Say what annotation is going to do: unit names in order, and how many problems they hold."""
    store.write_json(PLAN, {"units": list(units), "problems": problems})


def read_plan(store: RunStore) -> dict[str, Any] | None:
    """What `write_plan` wrote; None before annotation ever started.

    Raises UserError where the file is not whole.
    """
    path = store.file(PLAN)
    if not path.is_file():
        return None
    plan = read_object(path)
    if not isinstance(plan.get("units"), list) or not isinstance(plan.get("problems"), int):
        raise unreadable(store.called(PLAN), "it lacks units or problems")
    return plan


def planned_units(store: RunStore, shard: Shard) -> list[str]:
    """Names of the shard's units, in order; none before annotation ever started."""
    plan = read_plan(store) or {"units": []}
    return [unit for position, unit in enumerate(plan["units"]) if shard.owns(position)]


@dataclass(frozen=True)
class UnitLog:
    """The driver's diary of one shard: a line for its start, for each finished unit, now and then
    one for its engines, and one for its end.

    One driver writes to a file: those that join it have files of their own, by their names.
    """

    store: RunStore
    shard: Shard
    writer: str = ""
    """Of a driver beside another one of the shard."""

    @property
    def name(self) -> str:
        writer = f".{self.writer}" if self.writer else ""
        return f"annotate/log-{self.shard.index}-of-{self.shard.count}{writer}.jsonl"

    @property
    def title(self) -> str:
        """What a person calls the driver."""
        return f"{self.shard} {self.writer}".rstrip()

    @property
    def path(self) -> Path:
        """The diary as it is now, on this machine."""
        return self.store.file(self.name)

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
        line = json.dumps({"time": time.time(), **event}, separators=(",", ":"))
        # A unit's line may wait where each costs a request: what is lost is in the summaries.
        add_line(self.store.storage, self.name, line, at_once=event["event"] != "unit")


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


def title_of(log: Path) -> str:
    """`UnitLog.title` of a diary's file."""
    shard, _, writer = log.stem.removeprefix("log-").partition(".")
    return f"{shard.replace('-of-', '/')} {writer}".rstrip()


def log_files(store: RunStore) -> list[Path]:
    """The diaries of all shards."""
    if store.remote:
        # Each is a folder of parts.
        logs = {part.rpartition("/")[0] for part in store.storage.names("annotate")}
        return store.bring(sorted(name for name in logs if name.startswith("annotate/log-")))
    return sorted((store.root / "annotate").glob("log-*.jsonl"))
