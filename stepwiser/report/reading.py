"""What a run has left so far, read without ever failing on what is missing."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from stepwiser.data.records import ChunkValue, Judgement, JudgePrompt, Row, StepItem, Trajectory
from stepwiser.data.step_items import load_step_items
from stepwiser.run.store import RunStore
from stepwiser.run.units import TABLES, finished_units, rows_files

R = TypeVar("R", bound=Row)

STAGES = ("segment", "annotate", "label", "train", "evaluate", "solve", "select", "finetune")

VALUED = "-valued"
"""End of the names of judgement files about annotated trajectories."""

PUBLISHED = "publish_"
"""What the trainer puts before the figures that come back with a new weight version."""


def pick(data: Any, *path: str) -> Any:
    """`data[path[0]][path[1]]…`, None where a part is absent."""
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    return data


def number(data: Any, *path: str) -> float | None:
    """The finite number at `path`; None for anything else."""
    value = pick(data, *path)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def mapping(data: Any, *path: str) -> dict[str, Any]:
    """The object at `path`; empty where there is none."""
    value = pick(data, *path)
    return value if isinstance(value, dict) else {}


def rows_of(data: Any, *path: str) -> list[dict[str, Any]]:
    """The list of objects at `path`; empty where there is none."""
    value = pick(data, *path)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


@dataclass
class RunData:
    """One run directory; files are read when first asked for."""

    store: RunStore
    notices: list[str] = field(default_factory=list)
    """Files that are there and cannot be read: said at the top of the page."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """As written, whatever version of the program wrote it."""
        file = self.store.file("config.yaml")
        try:
            raw = yaml.safe_load(file.read_text("utf-8")) if file.is_file() else {}
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            self._unreadable(file, error)
            return {}
        return raw if isinstance(raw, dict) else {}

    @cached_property
    def environment(self) -> dict[str, Any]:
        return self._json(self.store.file("environment.json"))

    @cached_property
    def curves(self) -> dict[str, list[dict[str, Any]]]:
        """RL curves by the name of the training; a step that was trained again counts once."""
        by_name: dict[str, dict[float, dict[str, Any]]] = {}
        broken = 0
        curve = self.store.curve
        text = curve.read_text("utf-8", errors="replace") if curve.is_file() else ""
        # A training that goes on may be writing the last line: what has no end yet is not read.
        for line in filter(str.strip, text[: text.rfind("\n") + 1].split("\n")):
            try:
                row = json.loads(line)
            except ValueError:
                broken += 1
                continue
            if not isinstance(row, dict) or row.get("kind") == "sft" or "step" not in row:
                continue
            flat = {key.removeprefix(PUBLISHED): value for key, value in row.items()}
            # Evaluations have lines of their own, which come when they are done.
            at = by_name.setdefault(str(row.get("name", "judge")), {})
            at[row["step"]] = at.get(row["step"], {}) | flat
        if broken:
            self.notices.append(f"{curve.name}: unreadable lines left out: {broken}")
        return {name: [rows[s] for s in sorted(rows)] for name, rows in by_name.items()}

    def metrics(self, stage: str) -> dict[str, Any]:
        """What a stage measured; empty before it has run."""
        return self._json(self.store.file(f"metrics/{stage}.json"))

    @cached_property
    def values(self) -> list[ChunkValue]:
        return self._rows("values", ChunkValue)

    @cached_property
    def trajectories(self) -> dict[str, Trajectory]:
        return {row.trajectory_id: row for row in self._rows("trajectories", Trajectory)}

    @cached_property
    def judge_prompts(self) -> list[JudgePrompt]:
        return self._rows("judge_prompts", JudgePrompt)

    @cached_property
    def judgements(self) -> dict[str, dict[tuple[str, int], Judgement]]:
        """By judge, then by item and step; both of evaluation items and of trajectories."""
        found: dict[str, dict[tuple[str, int], Judgement]] = {}
        for row in self._rows("judgements", Judgement):
            name = row.judge.removesuffix(VALUED)
            found.setdefault(name, {})[row.item_id, row.step_index] = row
        return found

    @cached_property
    def items(self) -> list[StepItem]:
        """The solutions that the judges were scored on, in the order of their file."""
        files = self.store.files("evaluation", ".json")
        source = pick(self.config, "evaluate", "source")
        if not files and isinstance(source, str) and Path(source).expanduser().is_file():
            files = [Path(source).expanduser()]
        rows: list[StepItem] = []
        skip = pick(self.config, "evaluate", "skip_bad_rows") is True
        for file in files:
            try:
                rows += load_step_items(str(file), None, skip)
            except (ValueError, TypeError, AttributeError) as error:
                self._unreadable(file, error)
        # A limit leaves items unjudged: those that were judged are the ones to look at.
        judged = {item_id for found in self.judgements.values() for item_id, _ in found}
        return [row for row in rows if row.id in judged] or rows

    @property
    def embedded(self) -> bool:
        """Problems come from the embedded task, whose oracle knows every step."""
        source = pick(self.config, "annotate", "source")
        return pick(self.config, "data", "source") == "embedded" and source is None

    def base_model(self) -> dict[str, Any]:
        """How the packaged base model was made, if this run started from it."""
        if self.config.get("policy_model") != "embedded":
            return {}
        from stepwiser import tasks

        return self._json(Path(tasks.__file__).parent / "base_model" / "training.json")

    def costs(self) -> dict[str, dict[str, Any]]:
        """Cost by stage, in the order of the stages."""
        files = {
            file.stem.removeprefix("cost-"): file
            for file in self.store.files("metrics", ".json")
            if file.name.startswith("cost-")
        }
        order = [stage for stage in STAGES if stage in files]
        return {s: self._json(files[s]) for s in [*order, *sorted(files.keys() - set(order))]}

    def _rows(self, table: str, kind: type[R]) -> list[R]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows: list[R] = []
        for file in self._files(table):
            try:
                rows += kind.from_table(pq.read_table(file))
            except (pa.ArrowException, KeyError, OSError, ValueError) as error:
                self._unreadable(file, error)
        return rows

    def _files(self, table: str) -> list[Path]:
        # Units of annotation are complete once their summary is there.
        done = finished_units(self.store) if table in TABLES else set()
        if not done:
            return self.store.files(table, ".parquet")
        files = rows_files(self.store, table, sorted(done))
        return [file for file in files if self.store.remote or file.is_file()]

    def _json(self, file: Path) -> dict[str, Any]:
        value = self._load(file)
        return mapping({"file": value}, "file")

    def _load(self, file: Path) -> Any:
        try:
            return json.loads(file.read_text()) if file.is_file() else None
        except (OSError, ValueError, RecursionError) as error:
            self._unreadable(file, error)
            return None

    def _unreadable(self, file: Path, error: Exception) -> None:
        inside = file.is_relative_to(self.store.root)
        name = file.relative_to(self.store.root) if inside else file
        notice = f"{name} cannot be read: {error}"
        if notice not in self.notices:
            self.notices.append(notice)
