"""EngineSupervisor: starts, watches and ends the engines of a pool while work goes on.

A thread of the pool's process looks at the cluster once a second, asks `scaling.plan_scaling` what
should change, does that, and tells the registry who takes requests. One placement group an engine.
Groups that find no room stay pending: that is the demand Ray's autoscaler answers, and what starts
an engine the moment a node comes. (`request_resources` would keep the nodes after their work, too.)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.engine.engine import EngineOptions, engine_environment
from actors.pool.generator import RolloutGenerator
from actors.pool.registry import Membership, Publication, StaleWeights
from actors.pool.scaling import ClusterNodes, EngineState, Phase, plan_scaling

PERIOD_S = 1.0
MAX_RESTARTS = 100
"""Per engine: ends a loop of crashes, and a day of preemptions does not reach it."""
MAX_FAILURES = 5
"""Engines that may fail in a row, other than with their node, before none is started any more."""
GRACE_S = 2.0
"""After it left the list an engine may still get requests of clients that do not know yet."""
CLOSE_S = 15.0
"""For the ranks of engines that are no longer wanted to end by themselves."""
_CONCURRENCY = 10_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineTemplate:
    """How every engine of a pool is made."""

    options: EngineOptions
    registry: str
    """Name of the registry. A handle among the arguments would tie an engine's restart to this
    process's object store, as Ray warns for each of them."""
    cpus: float
    gpus: float
    labels: Mapping[str, str] | None
    """Ray's selector of the nodes that may hold one."""
    threads: int
    """Of one engine, on the CPU."""
    build: Callable[[EngineOptions], Any]

    @property
    def bundle(self) -> dict[str, float]:
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def make(self, index: int, group: PlacementGroup) -> Any:
        """The actor; it starts when its group has found a place."""
        variables = engine_environment(self.options)
        variables |= {"OMP_NUM_THREADS": str(self.threads)}
        return RolloutGenerator.options(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_restarts=MAX_RESTARTS,
            max_concurrency=_CONCURRENCY,
            # Ray would remember the last hundred thousand requests, in its head's memory.
            enable_task_events=False,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
            runtime_env={"env_vars": variables},
        ).remote(self.options, self.registry, index, self.build)


@dataclass
class ManagedEngine:
    """An engine with its place, and the call whose end changes its phase."""

    index: int
    group: PlacementGroup
    actor: Any
    call: Future[Any]
    phase: Phase = Phase.STARTING
    node: str | None = None
    displaced: bool = False
    idle: bool = False
    deadline: float = 0.0
    since: float = 0.0
    serial: int = 0
    """Newest publication it is known to have."""

    @property
    def state(self) -> EngineState:
        return EngineState(
            self.index, self.phase, self.node, self.displaced, self.idle, self.deadline
        )


class EngineSupervisor:
    """Keeps as many engines as the cluster has room for, up to ``wanted``."""

    def __init__(
        self,
        template: EngineTemplate,
        registry: Any,
        wanted: int,
        give_up_s: float,
        published: Callable[[], Publication | None],
    ) -> None:
        self._template = template
        self._registry = registry
        self._published = published
        self._wanted = wanted
        self._give_up_s = give_up_s
        self._engines: dict[int, ManagedEngine] = {}
        self._next = 0
        self._failures = 0
        self._last: BaseException | None = None
        self._served = time.monotonic()
        self._members: dict[int, Any] = {}
        self._membership = 0
        # Engine-seconds up to the last look, engines with a place then, and when that was: one
        # object, so that another thread never reads half of a change.
        self._account = (0.0, 0, time.monotonic())
        self._end = threading.Event()
        self._thread = threading.Thread(
            target=self._supervise, name="engine-supervisor", daemon=True
        )

    @property
    def engines(self) -> list[ManagedEngine]:
        """The engines, also those that wait for a place."""
        return list(self._engines.values())

    @property
    def placed(self) -> int:
        """Engines that had a place at the last look, serving or not."""
        return self._account[1]

    @property
    def held_seconds(self) -> float:
        """Engine-seconds so far: how long every engine there has been has had its place.

        Right to a second for each engine that comes or goes, which is how often there is a look.
        """
        seconds, placed, looked = self._account
        return seconds + placed * (time.monotonic() - looked)

    @property
    def membership(self) -> Membership:
        """The engines that take requests, as the registry was told last."""
        return Membership(self._membership, self._members)

    def add(self, number: int) -> None:
        """Ask for more engines, each with a placement group of its own."""
        for _ in range(number):
            labels = self._template.labels
            group = placement_group(
                [self._template.bundle], bundle_label_selector=[dict(labels)] if labels else None
            )
            actor = self._template.make(self._next, group)
            call = actor.join.remote().future()
            self._engines[self._next] = ManagedEngine(self._next, group, actor, call)
            self._next += 1

    def start(self) -> None:
        """Keep from now on."""
        self._thread.start()

    def tick(self) -> None:
        """One look at the cluster and at every engine, and what follows from it."""
        nodes = self.look()
        for engine in tuple(self._engines.values()):
            if engine.call.done():
                self._advance(engine, nodes)
        wanted = self._wanted if self._failures < MAX_FAILURES else 0
        changes = plan_scaling([h.state for h in self.engines], nodes, wanted, time.time())
        for index, deadline in changes.drain.items():
            engine = self._engines[index]
            engine.phase, engine.deadline, engine.since = Phase.DRAINING, deadline, time.monotonic()
            engine.call = engine.actor.stats.remote().future()
            logger.info("engine %d drains: its node is about to go", index)
        for index in changes.remove:
            self._remove(index)
        self.tell()
        self.add(changes.start)

    def tell(self) -> None:
        """Say on the registry who takes requests; an engine that lacks new weights fetches them."""
        ready = (Phase.SERVING, Phase.RETURNING)
        members = {h.index: h.actor for h in self.engines if h.phase in ready}
        if members.keys() != self._members.keys():
            self._membership = time.time_ns()
        if members:
            self._served = time.monotonic()
        self._members = members
        loaded = {index: self._engines[index].serial for index in members}
        said = self._registry.register.remote(
            self._membership, members, loaded, self._closed(), self._published()
        )
        behind = ray.get(said, timeout=60)
        for index in behind:
            engine = self._engines[index]
            engine.phase, engine.call = Phase.STARTING, engine.actor.join.remote().future()
            del self._members[index]

    def shutdown(self) -> None:
        """End every engine and give all places back."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        self._remove(*self._engines)
        self._take_stock()

    # --- one engine -----------------------------------------------------------------------------

    def _advance(self, engine: ManagedEngine, nodes: ClusterNodes) -> None:
        """What the end of an engine's call says about it."""
        error = engine.call.exception()
        if engine.phase is Phase.DRAINING:
            if error is None:
                stats = engine.call.result()
                self._registry.report.remote(engine.index, engine.serial, stats, {})
                quiet = stats.sequences_running + stats.sequences_waiting == 0
                engine.idle = quiet and time.monotonic() - engine.since > GRACE_S
            else:
                engine.idle = not isinstance(error, ActorUnavailableError)
            engine.call = engine.actor.stats.remote().future()
        elif engine.phase is Phase.SERVING:
            # `wait_for_death` ends with the process: Ray makes another, in the same place.
            engine.phase, engine.call = Phase.RETURNING, engine.actor.join.remote().future()
        elif error is None:
            _, engine.serial = engine.call.result()
            engine.phase, engine.call = Phase.SERVING, engine.actor.wait_for_death.remote().future()
            self._failures = 0
        elif _is_passing(error):
            engine.call = engine.actor.join.remote().future()
        else:
            self._last = _cause(error)
            if engine.node in nodes.alive:
                self._failures += 1
                logger.warning("engine %d is lost: %s", engine.index, self._last)
            self._remove(engine.index)

    def _remove(self, *indexes: int) -> None:
        engines = [self._engines.pop(index) for index in indexes]
        if self._template.options.tensor_parallel_size > 1:
            ray.wait(
                [engine.actor.close.remote() for engine in engines],
                num_returns=len(engines),
                timeout=CLOSE_S,
            )
        for engine in engines:
            ray.kill(engine.actor)
            remove_placement_group(engine.group)

    # --- the cluster ----------------------------------------------------------------------------

    def look(self) -> ClusterNodes:
        """Where the engines are, and so what they hold; nothing is changed."""
        nodes = cluster_nodes()
        table = placement_group_table() if self._engines else {}
        for engine in self.engines:
            row = table.get(engine.group.id.hex(), {})
            engine.displaced = row.get("state") == "RESCHEDULING"
            place = next(iter(row.get("bundles_to_node_id", {}).values()), None)
            engine.node = place if row.get("state") == "CREATED" else None
        self._take_stock()
        return nodes

    def _take_stock(self) -> None:
        placed = sum(engine.node is not None for engine in self.engines)
        self._account = (self.held_seconds, placed, time.monotonic())

    def _closed(self) -> str | None:
        if self._failures >= MAX_FAILURES and not self.engines:
            return f"{self._failures} engines failed in a row: {self._last}"
        if time.monotonic() - self._served > self._give_up_s:
            return (
                f"there was no engine for {self._give_up_s:g} s and no room for one: add nodes or "
                "raise engine.start_timeout_s"
            )
        return None

    def _supervise(self) -> None:
        while not self._end.wait(PERIOD_S):
            try:
                self.tick()
            except Exception as error:
                # The head may be busy or away for a moment, which Ray has many errors for; what is
                # not done now is done next.
                if self._end.is_set():
                    return
                logger.warning("looking after the engines failed, again in a moment: %r", error)


def cluster_nodes() -> ClusterNodes:
    """The nodes that are alive and those that announced their end (preempted, or scaled down)."""
    alive = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
    # Not public, but what Ray Train itself asks; `ray.nodes` does not tell.
    draining = ray._private.state.state.get_draining_nodes()
    return ClusterNodes(alive, {node: deadline / 1000.0 for node, deadline in draining.items()})


def _cause(error: BaseException) -> BaseException:
    return error.cause if isinstance(error, RayTaskError) else error


def _is_passing(error: BaseException) -> bool:
    """Whether asking the engine again may help."""
    if isinstance(_cause(error), StaleWeights):
        return True  # until somebody publishes again
    if isinstance(error, RayActorError):
        return isinstance(error, ActorUnavailableError)
    return isinstance(error, RayError) and not isinstance(error, RayTaskError)
