"""Monte-Carlo values of every chunk, in units that are done once and never again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ray.exceptions import RayTaskError
from rich.table import Table

from actors.client import EnginesLost
from actors.labeler import LabelerOptions
from pipelines.feeding import annotate_units
from pipelines.session import Session
from pipelines.watching import AnnotationWatch
from stepwiser.config import RunConfig
from stepwiser.errors import UserError
from stepwiser.given import GivenProblem, load_given
from stepwiser.plan import engine_range
from stepwiser.records import Problem, content_id
from stepwiser.shard import Shard
from stepwiser.stopping import Question, stopping_plan
from stepwiser.units import UnitLog, finished_units, summarize, sweep, weights_id, write_plan

OPERATIONAL = {"problems_per_unit", "min_engines", "max_engines", "source"}
"""Settings of the stage that do not change what a unit holds (of a source, its content does)."""

REJECTS = "rejects/annotate.json"


def run(session: Session) -> dict[str, Any]:
    """Annotate what is not annotated yet; returns the counts of all units of the run."""
    model = session.policy_dir()
    problems = problems_of(session)
    store, shard = session.store, Shard.parse(session.config.cluster.shard)
    units = units_of(session, problems, model)
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
            log = UnitLog(store, shard)
            log.start(usage.gpus, len(todo))
            try:
                _annotate(session, model, todo, len(own), log)
            finally:
                log.end()
                sweep(store, own)
    metrics = write_metrics(session, units)
    _print(session, metrics, len(units), shard)
    rejects = summarize(store, sorted(own))["rejects"] if shard.count > 1 else metrics["rejects"]
    if rejects:
        path = store.write_json(REJECTS, metrics["rejects"])
        raise UserError(
            f"{len(rejects)} problem{'s' if len(rejects) > 1 else ''} could not be annotated: "
            f"{path} has the reason and the unit of each. Everything else is kept. To try them "
            f"again, remove {store.table_dir('units')}/<unit>.json and start the same command"
        )
    if not metrics["rejects"]:
        (store.root / REJECTS).unlink(missing_ok=True)  # of an earlier start
    return metrics


def write_metrics(session: Session, units: Iterable[str]) -> dict[str, Any]:
    """Sum up those of the units that are finished."""
    # Other shards of the same directory count too: the last to end sees the whole run.
    metrics = summarize(session.store, sorted(finished_units(session.store).intersection(units)))
    plan = stopping_plan(session.config.annotate, session.config.label)
    metrics |= {"rollouts_per_prefix": plan.planned, "stopping": str(plan.rule)}
    session.store.write_metrics("annotate", metrics)
    return metrics


def problems_of(session: Session) -> list[Problem]:
    """Those of the data set, or those whose trajectories were given."""
    source = session.config.annotate.source
    if source is None:
        return session.problems("train", session.config.data.limit)
    given = load_given(source, session.config.data, session.checker)
    return session.usable(given, "given", source)


def units_of(session: Session, problems: Sequence[Problem], model: str) -> dict[str, list[Problem]]:
    """Units by name; the name is the hash of what decides the rows."""
    size = session.config.annotate.problems_per_unit
    recipe = session.config.annotate.model_dump(exclude=OPERATIONAL)
    # Where rollouts stop early, the rows hang on the labels that will be asked for too.
    recipe["plan"] = asdict(stopping_plan(session.config.annotate, session.config.label))
    weights = weights_id(model)
    units = {}
    for start in range(0, len(problems), size):
        part = list(problems[start : start + size])
        name = content_id(
            json.dumps(recipe), weights, session.config.seed, *(_content(p) for p in part)
        )
        units[name] = part
    return units


def _content(problem: Problem) -> str:
    return problem.content if isinstance(problem, GivenProblem) else problem.problem_id


def _annotate(
    session: Session, model: str, todo: dict[str, list[Problem]], total: int, log: UnitLog
) -> None:
    """Annotate the units; engines come and go with the cluster's nodes meanwhile."""
    config = session.config
    fewest, most = engine_range(config)
    held = session.engine_gpu_seconds
    pool = session.pool(model, count=fewest, maximum=most)
    options, root = labeler_options(config, model), str(session.store.root)
    try:
        with (
            session.track("annotate", total, "units", done=total - len(todo)) as tracker,
            AnnotationWatch(session, pool, tracker, log, todo, held) as watch,
        ):

            def finished(unit: str, counts: dict[str, int]) -> None:
                log.finished(unit, counts)
                watch.finished(counts)
                tracker.update(advance=1)

            try:
                session.run(annotate_units(pool, options, root, todo, finished))
            except RayTaskError as failure:
                raise readable(failure) from failure
    finally:
        if most > fewest:
            # What waits for a place would take the next stage's.
            session.release("main")


def labeler_options(config: RunConfig, model: str) -> LabelerOptions:
    """What labelers need to annotate with the policy in this directory."""
    return LabelerOptions(
        model,
        config.prompts,
        config.annotate,
        stopping_plan(config.annotate, config.label),
        Question.of(config.label),
        config.answer_checker,
        config.check_timeout_s,
        config.seed,
    )


def readable(error: RayTaskError) -> Exception:
    """The labeler's own words instead of Ray's account of them."""
    if isinstance(error.cause, EnginesLost):
        return UserError(
            f"annotation stopped, {error.cause}. Finished units are kept: the same command goes on"
        )
    return error.cause if isinstance(error.cause, UserError) else error


def _rollouts(metrics: dict[str, Any], counts: Counter[str]) -> str:
    """How many, and how many of the planned ones where they stop early."""
    if metrics["stopping"] == "fixed":
        return str(counts["rollouts"])
    share = counts["rollouts"] / max(1, counts["prefixes"] * metrics["rollouts_per_prefix"])
    return f"{counts['rollouts']} ({share:.0%} of the planned, {metrics['stopping']})"


def _print(session: Session, metrics: dict[str, Any], planned: int, shard: Shard) -> None:
    counts = Counter(metrics["counts"])
    table = Table(title="Annotation", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rate = counts["right_responses"] / max(1, counts["responses"])
    for name, value in (
        ("problems", counts["problems"]),
        ("problems rejected", len(metrics["rejects"])),
        ("pass@1 of the policy", f"{rate:.3f}"),
        (
            "all right / all wrong / mixed",
            f"{counts['all_right']} / {counts['all_wrong']} / {counts['mixed_problems']}",
        ),
        ("trajectories", counts["trajectories"]),
        ("chunks valued", counts["chunks"]),
        ("prefixes rolled out", counts["prefixes"]),
        ("rollouts", _rollouts(metrics, counts)),
        (
            "tokens (responses + rollouts)",
            f"{counts['response_tokens'] + counts['rollout_tokens']:,}",
        ),
    ):
        table.add_row(name, str(value))
    session.console.print(table)
    if shard.count > 1:
        done = f"{metrics['units']} of {planned} units are done"
        session.console.print(f"seen from shard {shard}: {done}, whichever shard did them")
    for key, count in counts.items():
        if key.startswith("malformed: "):
            session.console.print(f"  dropped {count} responses: {key.removeprefix('malformed: ')}")
