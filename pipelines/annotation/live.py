"""Annotation beside a training that reads from it: as much as the steps will read, and no more.

A thread of the driver hands units out while the collector wants prompts, labels what comes back and
offers it. Rows, units and logs are those of `stepwiser annotate`, which can take over at any time,
or have begun.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from dataclasses import replace
from typing import Any, Self

from ray.exceptions import RayError, RayTaskError

from actors.pool.pool import EnginePool
from actors.rollout.prompt_source import LiveOptions
from pipelines.annotation import work
from pipelines.annotation.dispatch import annotate_units
from pipelines.session.session import Session
from stepwiser.annotation.judge_prompts import UNSPLIT, is_held_out, label_trajectory
from stepwiser.annotation.label_rules import LabelRule
from stepwiser.annotation.stopping import Question, StoppingRule, stopping_plan
from stepwiser.config.annotation import Shard
from stepwiser.data.records import JudgePrompt
from stepwiser.errors import UserError
from stepwiser.run.read_log import PromptReadLog, count_reads, rollouts_read
from stepwiser.run.resource_plan import engine_range
from stepwiser.run.units import UnitLog, finished_units, read_unit, write_plan
from stepwiser.training.prompt_buffer import Reading

PAUSE_S = 0.5
"""Between two questions whether finished units are wanted."""
FIRST_GUESS = 4.0
"""Training prompts of a problem, before any has been annotated."""


def live_options(session: Session) -> LiveOptions:
    """How the collector reads. Raises UserError where rollouts stop for other labels than asked."""
    config = session.config
    train = config.train
    plan = stopping_plan(config.annotate, config.label)
    asked = Question.of(config.label)
    if plan.rule is not StoppingRule.FIXED and asked not in plan.questions:
        raise UserError(
            f"annotate.rules asks for {', '.join(map(str, plan.questions))}, training for {asked}: "
            "add the latter to annotate.rules, or set annotate.stopping=fixed"
        )
    return LiveOptions(
        Reading(train.steps, train.prompts_per_step, train.live_ahead, train.live_reads),
        session.store.place,
        # Two checkpoints are kept, one may be on its way, and the steps after them may be lost.
        remembered=3 * train.checkpoint_every + 8,
    )


class LiveAnnotation:
    """Annotates for a collector, from entering to leaving the block."""

    def __init__(self, session: Session, pool: EnginePool, collector: Any) -> None:
        self._session = session
        self._pool = pool
        self._collector = collector
        self._model = session.policy_dir()
        self._prompts = session.prompts(session.config.policy_model)
        problems = work.problems_of(session)
        self.units = work.units_of(session, problems, self._model)
        write_plan(session.store, list(self.units), len(problems))
        done = finished_units(session.store)
        self._todo = {name: rows for name, rows in self.units.items() if name not in done}
        # Of an earlier start, or of `stepwiser annotate`: offered before anything new is made.
        self._ready = deque(name for name in self.units if name in done)
        read = count_reads(PromptReadLog(session.store.place).read())
        self._read_before = set(read)
        self._log = UnitLog(session.store, Shard.parse(session.config.cluster.shard))
        self._gpus = engine_range(session.config)[0] * session.config.engine.gpus
        self._over = threading.Event()
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="live-annotation", daemon=True)
        self._offered = 0
        self._finished = 0
        self._arrived: list[str] = []
        self._handed_over: list[str] = []
        self._life: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._abandoned = kind is not None
        self._over.set()
        # Units under way are finished, as they have been paid for, unless training has failed.
        self._thread.join(timeout=None if kind is None else 10.0)

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._annotate())
            failure = None
        except Exception as error:  # whatever it is, the training is to end by it
            failure = str(work.readable(error) if isinstance(error, RayTaskError) else error)
        try:
            self._collector.end_of_prompts.remote(failure)
        except RayError:  # the collector has gone first, and the training fails of that
            if failure is not None:
                words = f"annotation failed: {failure}"
                self._session.console.print(words, style="yellow", markup=False, soft_wrap=True)

    async def _annotate(self) -> None:
        options = work.labeler_options(self._session.config, self._model)
        root = self._session.store.place
        self._log.start(self._gpus, len(self._todo))
        try:
            await self._forgotten()
            await self._offer_what_was_read()
            await annotate_units(
                self._pool, options, root, self._todo, self._on_finished, self._wanted
            )
            await self._offer_the_rest()
        finally:
            self._log.end()
        await self._stay()

    async def _stay(self) -> None:
        """All is offered; a collector that is restarted from now on needs it again."""
        await self._collector.end_of_prompts.remote()
        while not self._over.is_set():
            await asyncio.sleep(PAUSE_S)
            if await self._forgotten():
                await self._offer_the_rest()
                await self._collector.end_of_prompts.remote()

    async def _forgotten(self) -> bool:
        """Whether the collector has been restarted; what steps have read is offered anew then."""
        life = await self._collector.life.remote()
        before, self._life = self._life, life
        if before in (None, life):
            return False
        self._ready.extendleft(reversed(self._handed_over))
        self._handed_over.clear()
        self._read_before = set(count_reads(PromptReadLog(self._session.store.place).read()))
        await self._offer_what_was_read()
        return True

    def _on_finished(self, unit: str, counts: dict[str, int]) -> None:
        self._log.finished(unit, counts)
        self._arrived.append(unit)

    async def _wanted(self, under_way: int) -> int | None:
        """Units to begin now: what the steps want, less what those under way will bring."""
        await self._forgotten()
        while self._arrived:
            await self._offer(self._arrived.pop())
        if self._over.is_set():
            return None if self._abandoned or under_way == 0 else 0
        wanted = await self._collector.wanted.remote()
        while wanted > 0 and self._ready:
            wanted = await self._offer(self._ready.popleft())
        return max(0, math.ceil(wanted / self._per_unit) - under_way)

    async def _offer_what_was_read(self) -> None:
        """First what earlier steps have read: a restarted learner asks for it again."""
        if not self._read_before:
            return
        later = deque[str]()
        while self._ready:
            unit = self._ready.popleft()
            prompts = await asyncio.to_thread(self._label, unit)
            if any(prompt.prompt_id in self._read_before for prompt in prompts):
                await self._hand_over(unit, prompts)
            else:
                later.append(unit)
        self._ready = later

    async def _offer_the_rest(self) -> None:
        """Every unit is annotated: what has not been offered yet comes as it is asked for."""
        while self._arrived:
            await self._offer(self._arrived.pop())
        while self._ready and not self._over.is_set():
            if await self._collector.wanted.remote() > 0:
                await self._offer(self._ready.popleft())
            else:
                await asyncio.sleep(PAUSE_S)

    async def _offer(self, unit: str) -> int:
        self._finished += 1
        return await self._hand_over(unit, await asyncio.to_thread(self._label, unit))

    async def _hand_over(self, unit: str, prompts: list[JudgePrompt]) -> int:
        """To the collector; returns how many more prompts it wants."""
        train = [prompt for prompt in prompts if prompt.split == "train"]
        heldout = [prompt for prompt in prompts if prompt.split == "heldout"]
        self._offered += len(train)
        self._handed_over.append(unit)
        wanted: int = await self._collector.offer.remote(unit, train, heldout)
        return wanted

    def _label(self, unit: str) -> list[JudgePrompt]:
        """Judge prompts of a unit with their splits; what is too long or disputed is left out."""
        config = self._session.config
        trajectories, values = read_unit(self._session.store, unit)
        rows = []
        for trajectory in trajectories:
            own = values.get(trajectory.trajectory_id, [])
            rows += label_trajectory(trajectory, own, config.label, self._prompts)
        return [
            replace(row, split="heldout" if self._is_held_out(row.problem_id) else "train")
            for row in rows
            if row.split == UNSPLIT
        ]

    def _is_held_out(self, problem_id: str) -> bool:
        config = self._session.config
        return is_held_out(problem_id, config.label.heldout_share, config.seed)

    @property
    def _per_unit(self) -> float:
        """Training prompts that a unit is expected to give."""
        size = self._session.config.annotate.problems_per_unit
        return max(1.0, (self._offered + FIRST_GUESS * size) / (self._finished + 1))


def reading_metrics(session: Session) -> dict[str, Any]:
    """What training read of what was annotated; the rest of the annotation's account is its own."""
    units = sorted(finished_units(session.store))
    reads = count_reads(PromptReadLog(session.store.place).read())
    rule = LabelRule(session.config.label.rule)
    used, made = rollouts_read(session.store, units, reads.keys(), rule)
    return {
        "prompts_read": len(reads),
        "reads_mean": sum(reads.values()) / max(1, len(reads)),
        "reads_most": max(reads.values(), default=0),
        "rollouts_made": made,
        "rollouts_read": used,
        "made_over_read": made / used if used else float("nan"),
    }
