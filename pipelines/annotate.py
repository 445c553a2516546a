"""Monte-Carlo values of every chunk, in units that are done once and never again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.table import Table

from actors.client import EnginesLost
from actors.labeler import LabelerOptions, MonteCarloLabeler
from pipelines.feeding import feed
from pipelines.session import Session
from stepwiser.errors import UserError
from stepwiser.given import GivenProblem, load_given
from stepwiser.plan import engine_range
from stepwiser.records import Problem, content_id
from stepwiser.shard import Shard
from stepwiser.stopping import Question, stopping_plan
from stepwiser.units import UnitLog, finished_units, summarize, weights_id, write_plan

OPERATIONAL = {"problems_per_unit", "min_engines", "max_engines", "source"}
"""Settings of the stage that do not change what a unit holds (of a source, its content does)."""


def run(session: Session) -> dict[str, Any]:
    """Annotate what is not annotated yet; returns the counts of all units of the run."""
    config = session.config.annotate
    model = session.policy_dir()
    problems = _problems(session)
    store, shard = session.store, Shard.parse(session.config.cluster.shard)
    units = _units(session, problems, model)
    write_plan(store, list(units), len(problems))
    own = {name: rows for i, (name, rows) in enumerate(units.items()) if shard.owns(i)}
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
    # Other shards of the same directory count too: the last to end sees the whole run.
    metrics = summarize(store, sorted(finished_units(store) & units.keys()))
    plan = stopping_plan(config, session.config.label)
    metrics |= {"rollouts_per_prefix": plan.planned, "stopping": str(plan.rule)}
    store.write_metrics("annotate", metrics)
    _print(session, metrics, len(units), shard)
    rejects = summarize(store, sorted(own))["rejects"] if shard.count > 1 else metrics["rejects"]
    if rejects:
        path = store.write_json("rejects/annotate.json", metrics["rejects"])
        raise UserError(
            f"{len(rejects)} problems could not be annotated; their reasons are in "
            f"{path}. Everything else is kept"
        )
    return metrics


def _problems(session: Session) -> list[Problem]:
    """Those of the data set, or those whose trajectories were given."""
    source = session.config.annotate.source
    if source is None:
        return session.problems("train", session.config.data.limit)
    given = load_given(source, session.config.data, session.checker)
    return session.usable(given, "given", source)


def _units(session: Session, problems: Sequence[Problem], model: str) -> dict[str, list[Problem]]:
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
    pool = session.pool(model, count=fewest, maximum=most)
    options = LabelerOptions(
        model,
        config.prompts,
        config.annotate,
        stopping_plan(config.annotate, config.label),
        Question.of(config.label),
        config.answer_checker,
        config.check_timeout_s,
        config.seed,
    )
    root = str(session.store.root)
    # Beside the driver, whose node stays: one on a preempted node would lose its units with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    workers: list[Any] = []
    done: Counter[str] = Counter()

    def hire() -> Any:
        workers.append(MonteCarloLabeler.options(scheduling_strategy=here).remote(options, root))
        return workers[-1]

    try:
        with session.track("annotate", total, "units", done=total - len(todo)) as tracker:

            def finished(unit: str, counts: dict[str, int]) -> None:
                done.update(counts)
                log.finished(unit, counts)
                tokens = done["response_tokens"] + done["rollout_tokens"]
                note = f"{done['chunks']} chunks, {tokens / tracker.elapsed:,.0f} tokens/s"
                if most > fewest:
                    note += f", {pool.serving} engines"
                tracker.update(advance=1, note=note)

            try:
                session.run(feed(pool, pool.client(), hire, todo, finished))
            except RayTaskError as failure:
                raise _readable(failure) from failure
    finally:
        for worker in workers:
            ray.kill(worker)
        if most > fewest:
            # What waits for a place would take the next stage's.
            session.release("main")


def _readable(error: RayTaskError) -> Exception:
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
