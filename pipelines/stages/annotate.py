"""Monte-Carlo values of every chunk, in units that are done once and never again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ray.exceptions import RayTaskError

from actors.rollout.labeler import ELSEWHERE
from pipelines.annotation.dispatch import annotate_units
from pipelines.annotation.monitor import AnnotationMonitor
from pipelines.annotation.unit_leases import UnitLeases, UnitSource, unit_leases
from pipelines.annotation.work import (
    labeler_options,
    problems_of,
    readable,
    refuse_other_plan,
    units_of,
    write_metrics,
)
from pipelines.monitoring.formatting import facts_table
from pipelines.session.session import Session
from stepwiser.config.annotation import Shard
from stepwiser.data.records import Problem
from stepwiser.errors import UserError
from stepwiser.run.resource_plan import engine_range
from stepwiser.run.units import UnitLog, finished_units, summarize, sweep, write_plan

REJECTS = "rejects/annotate.json"


def run(session: Session) -> dict[str, Any]:
    """Annotate what is not annotated yet; returns the counts of all units of the run."""
    model = session.policy_dir()
    problems = problems_of(session)
    store, shard = session.store, Shard.parse(session.config.cluster.shard)
    units = units_of(session, problems, model)
    if session.joins:
        refuse_other_plan(store, list(units))
    write_plan(store, list(units), len(problems))
    own = {name: rows for i, (name, rows) in enumerate(units.items()) if shard.owns(i)}
    sweep(store, own)
    finished = finished_units(store)
    todo = {name: rows for name, rows in own.items() if name not in finished}
    if shard.count > 1:
        session.console.print(f"shard {shard}: {len(own)} of the run's {len(units)} units")
    if not todo:
        session.console.print("annotate: every unit is already done, kept")
    else:
        if len(todo) < len(own):
            done = len(own) - len(todo)
            session.console.print(f"{done} of {len(own)} units are already done")
        with session.stage("annotate", resumes=True) as usage:
            _take_part(session, model, todo, len(own), usage.gpus)
        sweep(store, own)
    metrics = write_metrics(session, units)
    _print(session, metrics, len(units), shard)
    rejects = summarize(store, sorted(own))["rejects"] if shard.count > 1 else metrics["rejects"]
    if rejects:
        path = store.write_json(REJECTS, metrics["rejects"])
        raise UserError(
            f"{len(rejects)} problem{'s' if len(rejects) > 1 else ''} could not be annotated: "
            f"{path} has the reason and the unit of each. Everything else is kept. To try them "
            f"again, remove {store.called('units')}/<unit>.json and start the same command"
        )
    if not metrics["rejects"]:
        store.remove(REJECTS)  # of an earlier start
    return metrics


def _take_part(
    session: Session, model: str, todo: dict[str, list[Problem]], total: int, gpus: float
) -> None:
    """Annotate the units, with all others that do."""
    store, shard = session.store, Shard.parse(session.config.cluster.shard)

    def warn(words: str) -> None:
        session.console.print(words, style="yellow", markup=False, soft_wrap=True)

    with unit_leases(store, list(todo), warn) as (held, leases):
        # One start at a time goes on with the diary of its shard; others have their own.
        log = UnitLog(store, shard)
        if not leases.take(Path(log.name).stem):
            log = UnitLog(store, shard, leases.owner)
        log.start(gpus, len(todo))
        try:
            _annotate(session, model, todo, total, log, held, leases.owner)
        finally:
            log.end()


def _annotate(
    session: Session,
    model: str,
    todo: dict[str, list[Problem]],
    total: int,
    log: UnitLog,
    held: UnitLeases,
    start: str,
) -> None:
    """Annotate the units; engines come and go with the cluster's nodes meanwhile."""
    config = session.config
    fewest, most = engine_range(config)
    gpu_seconds = session.engine_gpu_seconds
    pool = session.pool(model, count=fewest, maximum=most)
    options, root = labeler_options(config, model, start), session.store.place
    others = 0
    try:
        with (
            session.progress("annotate", total, "units", done=total - len(todo)) as bar,
            AnnotationMonitor(session, pool, bar, log, todo, gpu_seconds) as watch,
        ):

            def finished(unit: str, counts: dict[str, int]) -> None:
                elsewhere = bool(counts.pop(ELSEWHERE, 0))
                held.finished(unit, elsewhere=elsewhere)
                if not elsewhere:
                    log.finished(unit, counts)
                    watch.finished(counts)
                    bar.update(advance=1)

            def done_elsewhere(names: list[str]) -> None:
                nonlocal others
                others += len(names)
                watch.elsewhere(len(names), sum(len(todo[name]) for name in names), held.share)
                bar.update(advance=len(names))

            source = UnitSource(held, done_elsewhere)
            try:
                session.run(
                    annotate_units(
                        pool, options, root, todo, finished, seen=watch.work_seen, source=source
                    )
                )
            except RayTaskError as failure:
                raise readable(failure) from failure
            done_elsewhere(held.news())
    finally:
        if most > fewest:
            # What waits for a place would take the next stage's.
            session.release("main")
    if others:
        session.console.print(
            f"{start} did {held.done} of these {len(todo)} units, others {others}", soft_wrap=True
        )


def _rollouts(metrics: dict[str, Any], counts: Counter[str]) -> str:
    """How many, and how many of the planned ones where they stop early."""
    if metrics["stopping"] == "fixed":
        return str(counts["rollouts"])
    share = counts["rollouts"] / max(1, counts["prefixes"] * metrics["rollouts_per_prefix"])
    return f"{counts['rollouts']} ({share:.0%} of the planned, {metrics['stopping']})"


def _unverifiable(counts: Counter[str]) -> list[tuple[str, object]]:
    """What no verifier could say anything of, where there is any."""
    names = {
        "unverifiable_responses": "responses that could not be checked",
        "unverifiable_problems": "problems of which none could be checked",
    }
    return [(title, counts[name]) for name, title in names.items() if counts[name]]


def _print(session: Session, metrics: dict[str, Any], planned: int, shard: Shard) -> None:
    counts = Counter(metrics["counts"])
    checked = counts["responses"] - counts["unverifiable_responses"]
    rate = counts["right_responses"] / max(1, checked)
    rows = (
        ("problems", counts["problems"]),
        ("problems rejected", len(metrics["rejects"])),
        ("pass@1 of the policy", f"{rate:.3f}"),
        (
            "all right / all wrong / mixed",
            f"{counts['all_right']} / {counts['all_wrong']} / {counts['mixed_problems']}",
        ),
        *_unverifiable(counts),
        ("trajectories", counts["trajectories"]),
        ("chunks valued", counts["chunks"]),
        ("prefixes rolled out", counts["prefixes"]),
        ("rollouts", _rollouts(metrics, counts)),
        (
            "tokens (responses + rollouts)",
            f"{counts['response_tokens'] + counts['rollout_tokens']:,}",
        ),
    )
    session.console.print(facts_table(rows, "Annotation"))
    if shard.count > 1:
        done = f"{metrics['units']} of {planned} units are done"
        session.console.print(f"seen from shard {shard}: {done}, whichever shard did them")
    for key, count in counts.items():
        if key.startswith("malformed: "):
            session.console.print(f"  dropped {count} responses: {key.removeprefix('malformed: ')}")
