"""Join run directories of one config that annotated different units, for example its shards.

A unit's summary is copied last, so that a merge that was interrupted has whole units only, and
the same command finishes it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwiser.annotation.stopping import stopping_plan
from stepwiser.config import RunConfig
from stepwiser.errors import UserError
from stepwiser.run.store import RunStore, changes_between, read_object, unreadable
from stepwiser.run.units import (
    PLAN,
    REPEATS,
    TABLES,
    finished_units,
    log_files,
    read_log,
    read_plan,
    read_summary,
    read_unit,
    summarize,
    weights_id,
    write_plan,
)
from stepwiser.storage.folder import writing

POLICY = "policy"
"""The chunk-tuned policy whose rollouts the values are."""

COSTS = "annotate/merged-costs.json"

SUMMED = ("seconds", "generated_tokens", "prompt_tokens", "trained_tokens", "gpu_hours")
"""Costs of a stage that add up over directories."""


@dataclass(frozen=True)
class Merged:
    """What a merge did."""

    copied: int
    """Units that were not in `out` before."""
    present: int
    """Units met again, with the very same rows' keys; taken once."""
    finished: int
    """Units of `out` now."""
    planned: int | None
    """Units of the whole run, where annotation said so."""


def merge(runs: Sequence[RunStore], out: RunStore) -> Merged:
    """Copy every finished unit of `runs` to `out`, which may hold some already.

    Raises UserError for runs of different configs or policies (with the difference), or a unit
    that two runs hold with different rows (naming it).
    """
    sources = [run for run in runs if run.root.resolve() != out.root.resolve()]
    if not sources:
        raise UserError(f"nothing to merge into {out.root}: give other run directories than --out")
    config = _same_config(sources, out)
    models = _same_models([*sources, out])
    _same_policy([*sources, out])
    for run in sources:
        if not finished_units(run):
            raise UserError(f"{run.root} has no annotated units: leave it out")
    out.open(config)
    if models:
        out.record_models(models)
    there = finished_units(out)
    copied = present = 0
    for run in sources:
        for unit in sorted(finished_units(run)):
            if unit in there:
                _check_same_rows(unit, run, out)
                present += 1
                continue
            # What is not whole must not get into the whole run: here its file still has a name.
            read_unit(run, unit), read_summary(run, unit)
            for name in TABLES:
                table = run.root / name / f"{unit}.parquet"
                if name != REPEATS or table.is_file():
                    _copy(table, out.root / name / f"{unit}.parquet")
            _copy(run.root / "units" / f"{unit}.json", out.root / "units" / f"{unit}.json")
            there.add(unit)
            copied += 1
    plan = _join_plans([out, *sources])
    _join_logs(sources, out)
    _carry_the_rest(sources, out)
    stopping = stopping_plan(config.annotate, config.label)
    metrics = {"rollouts_per_prefix": stopping.planned, "stopping": str(stopping.rule)}
    out.write_metrics("annotate", summarize(out, sorted(there)) | metrics)
    return Merged(copied, present, len(there), len(plan["units"]) if plan else None)


def keys_of(store: RunStore, unit: str) -> set[tuple[str, int]]:
    """What identifies the rows of a unit: each trajectory (index -1) and each valued chunk."""
    trajectories, values = read_unit(store, unit)
    return {(t.trajectory_id, -1) for t in trajectories} | {
        (trajectory_id, value.chunk_index)
        for trajectory_id, rows in values.items()
        for value in rows
    }


def _same_config(sources: Sequence[RunStore], out: RunStore) -> RunConfig:
    config = sources[0].config()
    others = [*sources[1:], *([out] if (out.root / "config.yaml").is_file() else [])]
    for other in others:
        if changes := changes_between(config, other.config(), "and"):
            raise UserError(
                f"{sources[0].root} and {other.root} are runs of different configs:\n{changes}\n"
                "only runs of the same config can be merged"
            )
    return config


def _same_models(stores: Sequence[RunStore]) -> dict[str, dict[str, str]]:
    """What names of the Hub stood for, by key; raises UserError where two runs differ in it."""
    found: dict[str, dict[str, str]] = {}
    places: dict[str, Path] = {}
    for store in stores:
        for key, model in store.models().items():
            known = found.setdefault(key, model)
            if known != model:
                raise UserError(
                    f"{places[key]} and {store.root} ran with different commits of {key}="
                    f"{model['name']}: {known['commit']} and {model['commit']}; annotate the units "
                    f"of one of them again with {key}={model['name']}@COMMIT of the other"
                )
            places.setdefault(key, store.root)
    return found


def _same_policy(stores: Sequence[RunStore]) -> None:
    """Values of different policies do not belong together; their units have different names."""
    seen: dict[str, Path] = {}
    for store in stores:
        folder = store.model_dir(POLICY)
        if folder.is_dir():
            seen.setdefault(weights_id(folder), folder)
    if len(seen) > 1:
        first, second, *_ = seen.values()
        raise UserError(
            f"{first} and {second} are different policies: run `segment` once and copy "
            "models/policy to every shard's run directory before annotating"
        )


def _check_same_rows(unit: str, run: RunStore, out: RunStore) -> None:
    mine, theirs = keys_of(run, unit), keys_of(out, unit)
    if mine != theirs:
        only = len(mine - theirs), len(theirs - mine)
        raise UserError(
            f"unit {unit} is in {run.root} and in {out.root} with different rows ({only[0]} only "
            f"in the former, {only[1]} only in the latter): it was annotated twice; delete "
            f"units/{unit}.json in one of them"
        )


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise unreadable(source, "it is not there")
    with writing(target) as temporary:
        shutil.copyfile(source, temporary)


def _join_plans(stores: Sequence[RunStore]) -> dict[str, Any] | None:
    """The plans' union: shards of one run all wrote the same one."""
    plans = [plan for store in stores if (plan := read_plan(store))]
    if not plans:
        return None
    units = list(dict.fromkeys(unit for plan in plans for unit in plan["units"]))
    write_plan(stores[0], units, max(plan["problems"] for plan in plans))
    return {"units": units}


def _join_logs(sources: Sequence[RunStore], out: RunStore) -> None:
    """Diaries of the same shard are joined line by line, each line once."""

    def known(file: Path) -> Iterable[dict[str, Any]]:
        return read_log(file) if file.is_file() else ()

    for run in sources:
        for log in log_files(run):
            target = out.root / Path(PLAN).parent / log.name
            # Lines that a killed driver cut off say nothing, and stay behind.
            events = {json.dumps(event): event for file in (target, log) for event in known(file)}
            lines = sorted(events, key=lambda line: float(events[line]["time"]))
            with writing(target) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines))


def _carry_the_rest(sources: Sequence[RunStore], out: RunStore) -> None:
    """What later stages and the report want besides units: the policy, and what it all cost."""
    # By source, so that merging the same directory again does not count its cost twice.
    file = out.root / COSTS
    before = {str(out.root.resolve()): out.read_metrics("cost-annotate")}
    costs: dict[str, Any] = read_object(file) if file.is_file() else before
    for run in sources:
        _copy_policy(run.model_dir(POLICY), out.model_dir(POLICY))
        for stage in ("segment", "cost-segment"):
            metrics = run.read_metrics(stage)
            if metrics and out.read_metrics(stage) is None:
                out.write_metrics(stage, metrics)
        costs[str(run.root.resolve())] = run.read_metrics("cost-annotate")
    known = {path: cost for path, cost in costs.items() if cost}
    if known:
        out.write_json(COSTS, known)
        out.write_metrics("cost-annotate", _sum_costs(list(known.values())))


def _copy_policy(source: Path, target: Path) -> None:
    """`config.json` goes last: its presence is what makes a folder a model."""
    if not source.is_dir() or (target / "config.json").is_file():
        return
    files = [file for file in source.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: (file.name == "config.json", file)):
        _copy(file, target / file.relative_to(source))


def _sum_costs(costs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    total = {name: sum(cost.get(name, 0) for cost in costs) for name in SUMMED}
    peak = max(cost.get("peak_memory_gb", 0.0) for cost in costs)
    return costs[0] | total | {"peak_memory_gb": peak}
