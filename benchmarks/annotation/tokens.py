"""What stopping early saves, and what it does to labels, on completions of a real engine.

A tape holds many completions of every prefix, made once by vLLM. The real annotator then plays it
back under each stopping rule: the same completions in the same order for all of them, so that
labels can be compared chunk by chunk. A reference label comes from completions that no rule plays.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.annotation.work import labeler_options
from pipelines.session.session import Session
from stepwiser.annotation.annotator import Annotator, ProblemAnnotation
from stepwiser.annotation.label_rules import LabelRule
from stepwiser.annotation.stopping import Question, StoppingPlan, StoppingRule, trajectory_labels
from stepwiser.config.annotation import AnnotateConfig
from stepwiser.data.records import Problem, group_by
from stepwiser.data.verifiers import make_checker
from stepwiser.prompting.generation import Generator, Sample, Sampling

PLANNED = 16
"""The paper's M."""
REFERENCE = 256
"""Completions behind a reference label."""
PLAYED = 64
"""Further completions of a prefix, for the rules to draw from."""
BOUNDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Error bounds of the sequential rule that are tried."""
RULES = {
    "abs_q": Question(LabelRule.ABS_Q),
    "rel_effective": Question(LabelRule.REL_EFFECTIVE, alpha=0.8),
    "rel_effective, alpha 0.4": Question(LabelRule.REL_EFFECTIVE, alpha=0.4),
    "rel_ratio": Question(LabelRule.REL_RATIO),
}

Labels = dict[tuple[str, int], bool | None]
"""By trajectory and chunk."""


class Tape:
    """Completions by prompt; records those of an engine, and plays them back."""

    def __init__(self, engine: Generator, responses: int) -> None:
        self._engine = engine
        self._responses = responses
        self.samples: dict[tuple[int, ...], list[Sample]] = {}

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        """The engine's samples, kept."""
        samples = await self._engine.generate(prompt_ids, sampling, affinity)
        self.samples[tuple(prompt_ids)] = samples
        return samples

    def play(self, first: int, count: int, seed: int | None) -> Player:
        """A generator over completions ``first`` to ``first + count`` of every prefix, shuffled."""
        return Player(self, first, count, seed)


class Player:
    """Gives out each completion once, in an order that only hangs on prefix and seed."""

    def __init__(self, tape: Tape, first: int, count: int, seed: int | None) -> None:
        self._tape = tape
        self._part = slice(first, first + count)
        self._seed = seed
        self._rest: dict[tuple[int, ...], list[Sample]] = {}

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        """The next ``sampling.n`` completions. Raises IndexError when the tape has fewer left."""
        key = tuple(prompt_ids)
        if key not in self._rest:
            self._rest[key] = self._order(key)
        rest = self._rest[key]
        if len(rest) < sampling.n:
            raise IndexError(f"{sampling.n} completions asked for, {len(rest)} left on the tape")
        self._rest[key] = rest[sampling.n :]
        return rest[: sampling.n]

    def _order(self, key: tuple[int, ...]) -> list[Sample]:
        samples = self._tape.samples[key]
        if len(samples) < self._part.stop:
            return list(samples)  # the responses to a problem: the same ones for every rule
        part = samples[self._part]
        if self._seed is not None:
            random.Random(f"{self._seed}/{key}").shuffle(part)
        return part


@dataclass(frozen=True)
class Outcome:
    """What one rule made of all problems."""

    tokens: int
    completions: int
    labels: Labels


class Replay:
    """The annotator over the tape, with the settings of a session."""

    def __init__(self, session: Session, problems: Sequence[Problem], tape: Tape) -> None:
        options = labeler_options(session.config, session.policy_dir())
        self._config = options.annotate
        self._prompts = session.prompts(options.model_dir)
        self._checker = make_checker(options.checker, options.check_timeout_s)
        self._seed = options.seed
        self._problems = problems
        self._tape = tape

    async def record(self) -> None:
        """Fill the tape: reference and played completions of every prefix there is."""
        plan = StoppingPlan(StoppingRule.FIXED, REFERENCE + PLAYED, wave=REFERENCE + PLAYED)
        await self._annotate(plan, self._tape)

    async def outcome(self, plan: StoppingPlan, question: Question, seed: int) -> Outcome:
        """Play the tape under a rule."""
        return self._outcome(
            await self._annotate(plan, self._tape.play(REFERENCE, PLAYED, seed)), question
        )

    async def reference(self, question: Question) -> Outcome:
        """Labels of `REFERENCE` completions that no rule plays."""
        plan = StoppingPlan(StoppingRule.FIXED, REFERENCE, wave=REFERENCE)
        return self._outcome(
            await self._annotate(plan, self._tape.play(0, REFERENCE, None)), question
        )

    async def _annotate(self, plan: StoppingPlan, generator: Generator) -> list[ProblemAnnotation]:
        config: AnnotateConfig = self._config.model_copy(update={"rollouts": plan.planned})
        annotator = Annotator(generator, self._prompts, self._checker, config, plan, self._seed)
        return list(await asyncio.gather(*(annotator.annotate(p) for p in self._problems)))

    def _outcome(self, annotations: Sequence[ProblemAnnotation], question: Question) -> Outcome:
        labels: Labels = {}
        for annotation in annotations:
            values = group_by(annotation.values, "trajectory_id")
            for trajectory in annotation.trajectories:
                own = values.get(trajectory.trajectory_id, [])
                for i, label in enumerate(trajectory_labels(question, trajectory, own)):
                    labels[trajectory.trajectory_id, i] = label
        return Outcome(
            sum(a.counts["rollout_tokens"] for a in annotations),
            sum(a.counts["rollouts"] for a in annotations),
            labels,
        )


def measure_tokens(session: Session, problems: int, shuffles: int) -> dict[str, Any]:
    """Tokens of each rule as a share of `fixed`, and its labels beside those of `fixed`.

    Returns the figures of `exact` and `sequential` by label rule, and under ``ends`` those where a
    trajectory ends at its first value below the config's `stop_below`.
    """
    model = session.policy_dir()
    tape = Tape(session.pool(model), session.config.annotate.responses)
    replay = Replay(session, session.problems("train", problems), tape)
    session.run(replay.record())
    low = session.config.annotate.stop_below
    return {
        "followed": {
            name: session.run(_compare(replay, question, 0.0, shuffles))
            for name, question in RULES.items()
        },
        "ends": {
            name: session.run(
                _compare(replay, replace(question, minimum_previous_value=low), low, shuffles)
            )
            for name, question in RULES.items()
        },
    }


async def _compare(
    replay: Replay, question: Question, stop_below: float, shuffles: int
) -> dict[str, Any]:
    reference = (await replay.reference(question)).labels

    def plan(rule: StoppingRule, bound: float = 0.0, planned: int = PLANNED) -> StoppingPlan:
        fixed = rule is StoppingRule.FIXED
        wave = planned if fixed else replay._config.wave
        asked = () if fixed else (question,)
        return StoppingPlan(rule, planned, wave, bound, stop_below, asked)

    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(shuffles):
        fixed = await replay.outcome(plan(StoppingRule.FIXED), question, seed)
        plans = {
            "fixed": plan(StoppingRule.FIXED),
            "exact": plan(StoppingRule.EXACT),
            **{
                f"sequential {planned} {bound:g}": plan(StoppingRule.SEQUENTIAL, bound, planned)
                for planned in (PLANNED, PLAYED)
                for bound in BOUNDS
            },
        }
        for name, chosen in plans.items():
            made = fixed if name == "fixed" else await replay.outcome(chosen, question, seed)
            rows.setdefault(name, []).append(
                {
                    "tokens": made.tokens / fixed.tokens,
                    "completions": made.completions / fixed.completions,
                    "agreement": agreement(made.labels, fixed.labels),
                    "identical": float(made.labels == fixed.labels),
                    "error": 1.0 - agreement(made.labels, reference),
                }
            )
    return {
        name: {key: statistics.mean(row[key] for row in part) for key in part[0]}
        | {"error_se": _error_of_mean([row["error"] for row in part])}
        for name, part in rows.items()
    }


def agreement(one: Labels, other: Labels) -> float:
    """Share of equal labels among the chunks that both label."""
    both = one.keys() & other.keys()
    return sum(one[key] == other[key] for key in both) / max(1, len(both))


def _error_of_mean(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def summarize(found: dict[str, Any]) -> dict[str, Any]:
    """The figures that are asked for, of trajectories that are followed to their end."""
    rows = found["followed"]
    effective = rows["rel_effective"]
    # Of the bounds that agree well enough the cheapest; of those as dear as fixed the dearest.
    close = [
        row["tokens"]
        for name, row in effective.items()
        if name.startswith(f"sequential {PLANNED} ") and row["agreement"] >= 0.97
    ]
    equal = max(
        (
            row
            for name, row in effective.items()
            if name.startswith(f"sequential {PLAYED} ") and row["tokens"] <= 1.0
        ),
        key=lambda row: row["tokens"],
    )
    return {
        "exact_labels_identical": all(
            of_rule["exact"]["identical"] == 1.0
            for mode in found.values()
            for of_rule in mode.values()
        ),
        "exact_tokens_abs_q": rows["abs_q"]["exact"]["tokens"],
        "exact_tokens_rel_effective": effective["exact"]["tokens"],
        "sequential_tokens_at_97": min(close, default=float("nan")),
        "sequential_error_at_equal_tokens": equal["error"],
        "fixed_error": effective["fixed"]["error"],
    }
