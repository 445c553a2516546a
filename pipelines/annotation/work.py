"""What is to be annotated: problems, in units that are named by their content."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ray.exceptions import RayTaskError

from actors.pool.client import EnginesLost
from actors.rollout.labeler import LabelerOptions
from pipelines.session.run_data import pinned
from pipelines.session.session import Session
from stepwiser.annotation.stopping import Question, stopping_plan
from stepwiser.config import RunConfig
from stepwiser.data.imported import ImportedProblem, load_imported
from stepwiser.data.records import Problem, content_id
from stepwiser.errors import UserError
from stepwiser.run.store import RunStore
from stepwiser.run.units import finished_units, read_plan, summarize, weights_id

OPERATIONAL = {"problems_per_unit", "min_engines", "max_engines", "repeat_share", "source"}
"""Settings of the stage that do not change the rows of a unit (of a source, its content does).
Repeats have a table of their own, and a unit that was finished without them stays so."""


def write_metrics(session: Session, units: Iterable[str]) -> dict[str, Any]:
    """Sum up those of the units that are finished."""
    # Other shards of the same directory count too: the last to end sees the whole run.
    metrics = summarize(session.store, sorted(finished_units(session.store).intersection(units)))
    plan = stopping_plan(session.config.annotate, session.config.label)
    metrics |= {"rollouts_per_prefix": plan.planned, "stopping": str(plan.rule)}
    session.store.write_metrics("annotate", metrics)
    return metrics


def problems_of(session: Session) -> list[Problem]:
    """Those of the data set, or those of a file with trajectories."""
    source = session.config.annotate.source
    if source is None:
        return session.problems("train", session.config.data.limit)
    data = pinned(session.store, session.config.data)
    imported = load_imported(source, data, session.checker)
    return session.usable(imported, "imported", source)


def refuse_other_plan(store: RunStore, units: Sequence[str]) -> None:
    """Raise UserError where the run is made of other units than these, which are what this cluster
    would annotate."""
    plan = read_plan(store)
    if plan is not None and plan["units"] != list(units):
        shared = len(set(plan["units"]).intersection(units))
        raise UserError(
            f"{store.place} is made of other problems than data.source gives here, or of another "
            f"model: {shared} of its {len(plan['units'])} units are among the {len(units)} of this "
            "cluster. Give it the same files as where the run began"
        )


def units_of(session: Session, problems: Sequence[Problem], model: str) -> dict[str, list[Problem]]:
    """Units by name; the name is the hash of what decides the rows."""
    size = session.config.annotate.problems_per_unit
    template = session.config.annotate.model_dump(exclude=OPERATIONAL)
    # Where rollouts stop early, the rows hang on the labels that will be asked for too.
    template["plan"] = asdict(stopping_plan(session.config.annotate, session.config.label))
    weights = weights_id(model)
    units = {}
    for start in range(0, len(problems), size):
        part = list(problems[start : start + size])
        name = content_id(
            json.dumps(template), weights, session.config.seed, *(_content(p) for p in part)
        )
        units[name] = part
    return units


def _content(problem: Problem) -> str:
    return problem.content if isinstance(problem, ImportedProblem) else problem.problem_id


def labeler_options(config: RunConfig, model: str, start: str = "") -> LabelerOptions:
    """What labelers need to annotate with this policy, for a start of this name."""
    return LabelerOptions(
        model,
        config.prompts,
        config.annotate,
        stopping_plan(config.annotate, config.label),
        Question.of(config.label),
        config.answer_checker,
        config.check_timeout_s,
        config.seed,
        config.trust_remote_code,
        start,
    )


def readable(error: RayTaskError) -> Exception:
    """The labeler's own words instead of Ray's account of them."""
    if isinstance(error.cause, EnginesLost):
        return UserError(
            f"annotation stopped, {error.cause}. Finished units are kept: the same command goes on"
        )
    return error.cause if isinstance(error.cause, UserError) else error
