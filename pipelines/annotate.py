"""Monte-Carlo values of every chunk, in units that are done once and never again."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from rich.table import Table

from actors.labeler import LabelerOptions, MonteCarloLabeler
from pipelines.session import Session
from stepwiser.errors import UserError
from stepwiser.records import Problem, content_id
from stepwiser.store import RunStore

OPERATIONAL = {"problems_per_unit", "concurrent_units", "engines"}
"""Settings of the stage that do not change what a unit holds."""

DIFFICULTIES = ("all_right", "mixed_problems", "all_wrong")
"""What becomes of a problem; only mixed ones are annotated."""


def run(session: Session) -> dict[str, Any]:
    """Annotate what is not annotated yet; returns the counts of all units of the run."""
    config = session.config.annotate
    model = session.policy_dir()
    problems = session.problems("train", session.config.data.limit)
    units = _units(session, problems, model)
    finished = {p.stem for p in session.store.table_dir("units").glob("*.json")} & units.keys()
    todo = {name: rows for name, rows in units.items() if name not in finished}
    if not todo:
        session.console.print("annotate: every unit is already done, kept")
    else:
        if finished:
            session.console.print(f"{len(finished)} of {len(units)} units are already done")
        with session.stage("annotate", resumes=True):
            _annotate(session, model, todo, len(units))
    metrics = summarize(session.store, sorted(units))
    metrics["rollouts_per_prefix"] = config.rollouts
    session.store.write_metrics("annotate", metrics)
    _print(session, metrics)
    if metrics["rejects"]:
        path = session.store.write_json("rejects/annotate.json", metrics["rejects"])
        raise UserError(
            f"{len(metrics['rejects'])} problems could not be annotated; their reasons are in "
            f"{path}. Everything else is kept"
        )
    return metrics


def _units(session: Session, problems: Sequence[Problem], model: str) -> dict[str, list[Problem]]:
    """Units by name; the name is the hash of what decides the rows."""
    size = session.config.annotate.problems_per_unit
    recipe = session.config.annotate.model_dump(exclude=OPERATIONAL)
    files = sorted(Path(model).glob("*.safetensors"))
    weights = content_id(*(fingerprint(file) for file in files))
    units = {}
    for start in range(0, len(problems), size):
        part = list(problems[start : start + size])
        name = content_id(
            json.dumps(recipe), weights, session.config.seed, *(p.problem_id for p in part)
        )
        units[name] = part
    return units


def fingerprint(file: Path, sample: int = 2**20) -> str:
    """Hash of a file's size, beginning and end: enough to tell training runs' weights apart."""
    digest = hashlib.sha256(str(file.stat().st_size).encode())
    with file.open("rb") as handle:
        digest.update(handle.read(sample))
        handle.seek(max(0, file.stat().st_size - sample))
        digest.update(handle.read())
    return digest.hexdigest()


def _annotate(session: Session, model: str, todo: dict[str, list[Problem]], total: int) -> None:
    """Hand units to the labelers, so many at a time that no engine idles."""
    config = session.config
    engines = config.annotate.engines or config.engine.count
    pool = session.pool(model, count=engines)
    options = LabelerOptions(
        model,
        config.prompts,
        config.annotate,
        config.answer_checker,
        config.check_timeout_s,
        config.seed,
    )
    root = str(session.store.root)
    client = pool.client()
    workers = [MonteCarloLabeler.remote(options, root) for _ in range(engines)]
    done: Counter[str] = Counter()
    try:
        with session.track("annotate", total, "units", done=total - len(todo)) as tracker:

            async def one(labeler: Any, unit: str, gate: asyncio.Semaphore) -> None:
                async with gate:
                    done.update(await labeler.annotate.remote(unit, todo[unit], client))
                tokens = done["response_tokens"] + done["rollout_tokens"]
                note = f"{done['chunks']} chunks, {tokens / tracker.elapsed:,.0f} tokens/s"
                tracker.update(advance=1, note=note)

            async def everything() -> None:
                gates = [asyncio.Semaphore(config.annotate.concurrent_units) for _ in workers]
                async with asyncio.TaskGroup() as group:
                    for i, unit in enumerate(todo):
                        index = i % len(workers)
                        group.create_task(one(workers[index], unit, gates[index]))

            try:
                session.run(everything())
            except ExceptionGroup as failures:
                raise _readable(failures.exceptions[0]) from failures
    finally:
        for worker in workers:
            ray.kill(worker)


def _readable(error: Exception) -> Exception:
    """The labeler's own UserError instead of Ray's account of it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, UserError) else error


def summarize(store: RunStore, units: Sequence[str]) -> dict[str, Any]:
    """Sum of what the units counted."""
    # What never happened is counted too: the report shows a missing figure as unknown.
    counts: Counter[str] = Counter(dict.fromkeys(DIFFICULTIES, 0))
    rejects: list[dict[str, str]] = []
    for unit in units:
        summary = json.loads((store.table_dir("units") / f"{unit}.json").read_text())
        counts.update(summary["counts"])
        rejects += summary["rejects"]
    return {"units": len(units), "counts": dict(counts), "rejects": rejects}


def _print(session: Session, metrics: dict[str, Any]) -> None:
    counts = Counter(metrics["counts"])
    table = Table(title="Annotation", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rate = counts["right_responses"] / max(1, counts["responses"])
    for name, value in (
        ("problems", counts["problems"]),
        ("pass@1 of the policy", f"{rate:.3f}"),
        (
            "all right / all wrong / mixed",
            f"{counts['all_right']} / {counts['all_wrong']} / {counts['mixed_problems']}",
        ),
        ("trajectories", counts["trajectories"]),
        ("chunks valued", counts["chunks"]),
        ("prefixes rolled out", counts["prefixes"]),
        ("rollouts", counts["rollouts"]),
        (
            "tokens (responses + rollouts)",
            f"{counts['response_tokens'] + counts['rollout_tokens']:,}",
        ),
    ):
        table.add_row(name, str(value))
    session.console.print(table)
    for key, count in counts.items():
        if key.startswith("malformed: "):
            session.console.print(f"  dropped {count} responses: {key.removeprefix('malformed: ')}")
