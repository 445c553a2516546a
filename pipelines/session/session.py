"""One start of the program: Ray, the engines, the run directory, and the order of the stages."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Self, TypeVar

import ray
from rich.console import Console
from rich.markup import escape

from actors.engine.engine import Engine, EngineOptions
from actors.pool.pool import EnginePool
from actors.ray_messages import hush
from pipelines.monitoring.memory_kills import KillWatch, named
from pipelines.monitoring.progress import ProgressBar, make_console
from pipelines.monitoring.usage import Usage, metered
from pipelines.session.engine_options import architecture, engine_options, engine_threads
from pipelines.session.head_watch import head_monitored
from pipelines.session.memory_table import memory_plan, print_memory, running_nodes
from pipelines.session.plan_table import more_room, plan_table, shortfalls, staying_resources
from pipelines.session.ray_start import start_ray
from pipelines.session.run_data import pinned, tell_of_conditions
from pipelines.session.run_models import RunModels
from stepwiser.config import DataConfig, RunConfig
from stepwiser.data.records import Problem
from stepwiser.data.sources import ProblemSet, load_problems
from stepwiser.data.verifiers import AnswerChecker, make_checker
from stepwiser.errors import UserError
from stepwiser.prompting.generation import Generator, Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.run.resource_plan import STAYING, ResourcePlan, plan_run
from stepwiser.run.store import CURVE, RunStore
from stepwiser.search.policy import Solutions, sample_solutions
from stepwiser.storage.places import absolute

T = TypeVar("T")

COUNT_S = 60.0
"""Longest wait for what engines have counted."""


class Session:
    """Everything the stages of one start share; leaving it ends every actor and engine.

    ``build`` makes each engine inside its actor, as for `EnginePool`; ``joins``: the run was begun
    elsewhere, and what is done here must be a part of it.
    """

    def __init__(
        self,
        config: RunConfig,
        console: Console | None = None,
        build: Callable[[EngineOptions], Any] = Engine,
        joins: bool = False,
    ) -> None:
        self.config, self.joins = config, joins
        self._build = build
        self.console = console or make_console()
        # Absolute: Ray Train gives its workers a working directory of their own.
        self.store = RunStore(absolute(config.run_dir))
        self._models = RunModels(config, self.store, self.console)
        self.usage = Usage("idle")
        self._pools: dict[str, tuple[str, EnginePool]] = {}
        self._checker: AnswerChecker | None = None
        self._versions = 0
        self._released_seconds = 0.0
        self._owns_ray = False
        self._engine_labels: dict[str, str] | None = None

    # --- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        # A job that is told to stop should clean up as it does for Ctrl-C.
        self._old_term = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def start(self, stages: Sequence[str]) -> None:
        """Check models and plan, open the run directory, start or join Ray.

        Raises UserError when a model cannot be used or the plan cannot fit, before anything is
        placed; a run directory is made for models that can.
        """
        self.store.refuse_other(self.config)
        tell_of_conditions(self.store, self.console)
        self._models.check(stages)
        self.store.open(self.config)
        self._models.record()
        plans = plan_run(self.config, stages)
        if not any(plan.needs for plan in plans):
            return
        self.console.print(plan_table(plans))
        if not ray.is_initialized():
            self._owns_ray = start_ray(self.config)
            signal.signal(signal.SIGTERM, _interrupt)  # which Ray has taken for itself
        missing = self._wait_for_nodes(plans)
        if missing:
            raise UserError("; ".join([*missing, more_room(self._owns_ray)]))
        staying = staying_resources()
        found = (plan.engine_labels(staying) for plan in plans)
        self._engine_labels = next((labels for labels in found if labels), None)
        self._models.provide()
        self._check_memory(stages)

    def _check_memory(self, stages: Sequence[str]) -> None:
        """Show what is needed of each node; raise UserError where it cannot fit."""
        nodes = running_nodes()
        plans, refusal = memory_plan(self.config, stages, nodes)
        print_memory(self.console, plans, nodes)
        if refusal is not None:
            raise UserError(refusal)

    def turn(self, config: RunConfig) -> None:
        """Go on with another run: Ray stays, and so do engines that suit it. `start` comes next."""
        if config.engine != self.config.engine:
            for slot in tuple(self._pools):
                self.release(slot)
        if self._checker is not None:
            self._checker.close()
            self._checker = None
        self.config = config
        self.store = RunStore(absolute(config.run_dir))
        self._models = RunModels(config, self.store, self.console, self._models.commits)

    def _wait_for_nodes(self, plans: Sequence[ResourcePlan]) -> list[str]:
        """What the cluster lacks, once the autoscaler has had its time."""
        deadline = time.monotonic() + self.config.cluster.wait_for_nodes_s
        missing = shortfalls(plans, ray.cluster_resources(), staying_resources())
        if missing and self.config.cluster.wait_for_nodes_s:
            from ray.autoscaler.sdk import request_resources

            largest = max(plans, key=lambda plan: sum(plan.total.values()))
            needs = [need for need in largest.needs for _ in range(need.count)]
            bundles = [
                {name: value for name, value in (("CPU", n.cpus), ("GPU", n.gpus)) if value}
                for n in needs
            ]
            request_resources(
                bundles=bundles, bundle_label_selectors=[{} if n.spot else STAYING for n in needs]
            )
            with self._waiting("waiting for nodes"):
                while missing and time.monotonic() < deadline:
                    time.sleep(5)
                    missing = shortfalls(plans, ray.cluster_resources(), staying_resources())
        return missing

    def __exit__(self, *error: object) -> None:
        hush()
        # Whatever fails of these, the others are done: a Ray that is left would keep its engines.
        with contextlib.ExitStack() as ends:
            # Last: whoever had the signal, Ray's shutdown leaves it with the system's default.
            ends.callback(signal.signal, signal.SIGTERM, self._old_term)
            if self._owns_ray:
                ends.callback(ray.shutdown)
            if self._checker is not None:
                ends.callback(self._checker.close)
            for slot in self._pools:
                ends.callback(self.release, slot)

    # --- what stages use ------------------------------------------------------------------------

    @contextlib.contextmanager
    def stage(self, name: str, *, resumes: bool = False) -> Iterator[Usage]:
        """Meter a stage; its cost is written however it ends.

        A stage that `resumes` adds to what its earlier starts cost. A part that was killed without
        warning leaves no account of itself.
        """
        plan = plan_run(self.config, [name])[0]
        self.usage = usage = Usage(name, cpus=plan.total["CPU"], gpus=plan.total["GPU"])
        others = sum(need.total["GPU"] for need in plan.needs if need.role != "engine")
        held = self.engine_gpu_seconds
        kills = KillWatch(self.console, self.store.called(CURVE), name)
        try:
            with head_monitored(self._owns_ray, self.console), metered(usage), named(kills), kills:
                before = self._tokens()
                yield usage
                after = self._tokens()
                usage.generated_tokens += after[0] - before[0]
                usage.prompt_tokens += after[1] - before[1]
        finally:
            held = self.engine_gpu_seconds - held
            usage.gpu_hours = (held + others * usage.seconds) / 3600
            # Other starts may add theirs at the same time.
            self.store.change_metrics(
                f"cost-{name}", lambda old: usage.plus(old if resumes else None).as_dict()
            )
            self._say_what_was_not_checked()

    def _say_what_was_not_checked(self) -> None:
        if self._checker is not None and (reasons := self._checker.cannot_say):
            counted = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(5))
            self.console.print(
                f"[yellow]{reasons.total()} answers were not checked, which makes none of them "
                f"wrong: [/]{escape(counted)}",
                highlight=False,
            )
            reasons.clear()

    @property
    def engine_gpu_seconds(self) -> float:
        """GPU-seconds that engines have held since this start of the program, loading included."""
        seconds = sum(pool.held_seconds for _, pool in self._pools.values())
        return (self._released_seconds + seconds) * self.config.engine.gpus

    def pool(
        self,
        model: str,
        slot: str = "main",
        count: int | None = None,
        maximum: int | None = None,
        adapters: bool = False,
    ) -> EnginePool:
        """Engines with this model's weights: ``count``, and up to ``maximum`` as nodes come.

        Engines of the same architecture stay up between stages and only change their weights.
        ``adapters``: the learner that will give them new ones trains with `learner.lora`, where
        that is on. Such engines keep the model that they started with, and serve nobody else.
        """
        model = self.resolve(model)
        size = count or self.config.engine.count
        adapters = adapters and self.config.learner.lora.rank > 0
        key = f"{size}/{maximum or size}/{architecture(model)}{'/adapters' if adapters else ''}"
        held = self._pools.get(slot)
        if held and held[0] == key and not adapters:
            self._versions += 1
            self.run(held[1].update_weights(model, self._versions, 600.0))
            return held[1]
        # The main slot gives way to named ones and the other way round: a laptop has no room
        # for engines that nobody asks.
        for name in tuple(self._pools):
            if name == slot or (name == "main") != (slot == "main"):
                self.release(name)
        engine = self.config.engine
        with self._waiting(f"starting {size} engine{'s' if size > 1 else ''}"):
            pool = EnginePool(
                engine_options(self.config, model, adapters),
                count=size,
                maximum=maximum,
                cpus=engine.ray_cpus,
                gpus=engine.gpus,
                labels=self._engine_labels,
                threads=engine_threads(self.config, self.usage.stage, size),
                start_timeout_s=engine.start_timeout_s,
                build=self._build,
            )
        self._pools[slot] = (key, pool)
        return pool

    def _waiting(self, words: str) -> contextlib.AbstractContextManager[Any]:
        """A spinner on a terminal, a line in a log."""
        if self.console.is_terminal:
            return self.console.status(words)
        self.console.print(f"{words} …", highlight=False)
        return contextlib.nullcontext()

    def release(self, slot: str) -> None:
        """Shut the engines of a slot down."""
        held = self._pools.pop(slot, None)
        if held:
            try:
                tokens = self._count(held[1])
                self.usage.generated_tokens += tokens[0]
                self.usage.prompt_tokens += tokens[1]
            finally:
                held[1].shutdown()
                self._released_seconds += held[1].held_seconds

    @contextlib.contextmanager
    def in_place_of_engines(self) -> Iterator[None]:
        """End all engines; what the block starts where they were counts as they would have."""
        for slot in tuple(self._pools):
            self.release(slot)
        began = time.monotonic()
        try:
            yield
        finally:
            self._released_seconds += (time.monotonic() - began) * self.config.engine.count

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run async work to its end; Ctrl-C cancels it."""
        return asyncio.run(work)

    def progress(self, title: str, total: int, unit: str, done: int = 0) -> ProgressBar:
        return ProgressBar(self.console, title, total, unit, done)

    def solutions(
        self,
        title: str,
        pool: Generator,
        prompt_ids: Callable[[str], list[int]],
        problems: Sequence[Problem],
        sampling: Sampling,
        heard: Callable[[Sequence[Sample]], list[Sample]] = list,
    ) -> list[Solutions]:
        """Checked samples of every problem, with a bar of that title meanwhile."""
        with self.progress(title, len(problems), "problems") as bar:
            return self.run(
                sample_solutions(
                    pool,
                    prompt_ids,
                    problems,
                    sampling,
                    self.checker,
                    lambda: bar.update(advance=1),
                    heard,
                )
            )

    def policy_dir(self) -> str:
        """The policy that writes in steps: chunk-tuned, or as it came for paragraphs.

        Called as `resolve` calls models.
        """
        if self.config.prompts.steps == "paragraphs" and not self.store.has_model("policy"):
            return self.resolve(self.config.policy_model)
        return self.store.find_model("policy", "segment")

    def resolve(self, model: str) -> str:
        """What processes call a model: an absolute path, or `org/name@commit`."""
        return self._models.resolve(model)

    def prompts(self, model: str) -> PromptFormat:
        return self._models.prompts(model)

    @property
    def checker(self) -> AnswerChecker:
        if self._checker is None:
            self._checker = make_checker(self.config.answer_checker, self.config.check_timeout_s)
        return self._checker

    def problems(self, purpose: str, count: int, offset: int = 0) -> list[Problem]:
        """Problems to train on (`train`) or to measure with (`evaluation`); rejects are listed."""
        data = self.config.data if purpose == "train" else self.config.evaluation_data
        return self.load(
            data.model_copy(
                update={"limit": min(count, data.limit), "offset": data.offset + offset}
            ),
            purpose,
        )

    def selection_problems(self, count: int) -> list[Problem]:
        """Problems that annotation has not seen, where the source can give any."""
        data = self.config.data
        if data.source == "embedded":
            data = data.model_copy(update={"seed": data.seed + 500_009, "limit": count})
        else:
            data = data.model_copy(update={"offset": data.offset + data.limit, "limit": count})
        return self.load(data, "selection")

    def load(self, data: DataConfig, purpose: str) -> list[Problem]:
        """Problems of one source that fit the context; what is unusable is listed in `rejects/`.

        Raises UserError when no problem is left.
        """
        loaded = load_problems(pinned(self.store, data), self.checker)
        return self.usable(loaded, f"{purpose}-{data.offset}", data.source)

    def usable(self, loaded: ProblemSet, name: str, source: str) -> list[Problem]:
        """Those that fit the context; the rest is listed in `rejects/` under this name.

        Raises UserError when no problem is left.
        """
        rejects = [{"row": r.row, "reason": r.reason} for r in loaded.rejected]
        problems = []
        prompts = self.prompts(self.config.policy_model)
        limit = self.config.engine.max_model_len
        for problem in loaded.problems:
            tokens = len(prompts.policy_ids(problem.question))
            if tokens < limit:
                problems.append(problem)
                continue
            reason = f"its prompt of {tokens} tokens does not fit engine.max_model_len={limit}"
            rejects.append({"problem_id": problem.problem_id, "reason": reason})
        if rejects:
            path = self.store.write_json(f"rejects/{name}.json", rejects)
            self.console.print(f"[yellow]{len(rejects)} unusable rows are listed in {path}")
        for words in loaded.notices:
            self.console.print(f"{source}: {words}", style="yellow", markup=False)
        if not problems:
            raise UserError(f"no problem of {source} fits engine.max_model_len={limit}: raise it")
        return problems

    def _tokens(self) -> tuple[int, int]:
        counts = [self._count(pool) for _, pool in self._pools.values()]
        return sum(c[0] for c in counts), sum(c[1] for c in counts)

    def _count(self, pool: EnginePool) -> tuple[int, int]:
        # Without a limit a node that is dead, but not known to be, would hold up the end of a run.
        stats = self.run(asyncio.wait_for(pool.stats(), COUNT_S))
        return sum(s.generated_tokens for s in stats), sum(s.prompt_tokens for s in stats)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
