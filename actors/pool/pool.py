"""EnginePool: several generators behind one `generate`, as many as the cluster has room for.

The pool owns the actors and their placement groups, one group an engine, so that each can come and
go alone. Its client only routes; it is what other processes get.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import FIRST_EXCEPTION, wait
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.engine.engine import Engine, EngineFailure, EngineOptions, EngineStats
from actors.pool.client import PoolClient
from actors.pool.registry import EngineRegistry, Membership
from actors.pool.supervisor import PERIOD_S, EngineSupervisor, EngineTemplate, Phase
from stepwiser.annotation.admission import Reading
from stepwiser.errors import UserError

__all__ = ["EnginePool", "PoolClient"]

NEWS_S = 10.0
"""Longest wait for the registry's counters."""


class EnginePool(PoolClient):
    """Creates the engines, waits until they serve, keeps their number, and takes them down.

    Each engine is a placement group of ``cpus`` and ``gpus`` (fractions share a GPU). ``count``
    engines must serve before the pool is there; up to ``maximum`` come while work goes on, as nodes
    join. An engine that is lost with its node is replaced where there is room; one whose node
    announces its end answers what it has and gets nothing new. ``labels`` is Ray's selector of the
    nodes that may hold one. Raises UserError, before anything is started, when the cluster can
    never hold ``count``. ``threads`` of an engine are as many as it has whole CPUs, unless given.
    ``build`` makes the engine inside its actor.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        count: int,
        maximum: int | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        labels: Mapping[str, str] | None = None,
        threads: int | None = None,
        start_timeout_s: float = 900.0,
        build: Callable[[EngineOptions], Any] = Engine,
    ) -> None:
        name = f"stepwiser-weights-{uuid.uuid4().hex}"
        threads = threads or max(1, int(cpus))
        template = EngineTemplate(options, name, cpus, gpus, labels, threads, build)
        _require_room(template.bundle, count)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        registry = EngineRegistry.options(name=name, scheduling_strategy=here).remote()
        super().__init__(registry, options.max_num_seqs)
        self._supervisor = EngineSupervisor(
            template, registry, max(count, maximum or 0), start_timeout_s, lambda: self._published
        )
        try:
            self._supervisor.add(count)
            self.pids = self._wait_ready(template.bundle, start_timeout_s)
            self._supervisor.tick()
            self._adopt(self._supervisor.membership)
            self._supervisor.start()
        except BaseException:
            self.shutdown()
            raise

    def _wait_ready(self, bundle: dict[str, float], timeout_s: float) -> list[int]:
        held = self._supervisor.engines
        calls = [engine.call for engine in held]
        deadline = time.monotonic() + timeout_s
        up: Set[Any] = set()
        while len(up) < len(calls) and time.monotonic() < deadline:
            # What has a place is paid for, also while it loads its model.
            self._supervisor.look()
            left = max(0.0, min(PERIOD_S, deadline - time.monotonic()))
            up, _ = wait(calls, timeout=left, return_when=FIRST_EXCEPTION)
            if any(call.exception() for call in up):
                break
        for error in (call.exception() for call in up):
            if isinstance(error, RayTaskError):
                known = isinstance(error.cause, UserError | EngineFailure)
                raise (error.cause if known else error) from None
            if error is not None:
                raise EngineFailure(f"an engine died while it started: {error}") from error
        if len(up) == len(calls):
            return [call.result()[0] for call in calls]
        placed = sum(engine.group.wait(0) for engine in held)
        raise UserError(
            f"{len(up)} of {len(calls)} engines were up after {timeout_s:g} s, {placed} had "
            f"found room for {_amounts(bundle)}; free now: "
            f"{_amounts(ray.available_resources())}. Free resources, lower engine.count or "
            "raise engine.start_timeout_s"
        )

    def client(self) -> PoolClient:
        """A client for another process."""
        return PoolClient(self._registry, self._slots, Membership(self._membership, self._engines))

    @property
    def serving(self) -> int:
        """Engines that take requests now."""
        return sum(engine.phase is Phase.SERVING for engine in self._supervisor.engines)

    @property
    def placed(self) -> int:
        """Engines that have a place now, also those that still load their model."""
        return self._supervisor.placed

    @property
    def held_seconds(self) -> float:
        """How long every engine there has been has had its place, all together."""
        return self._supervisor.held_seconds

    def counters(self) -> dict[int, EngineStats]:
        """Of every engine there has been, as of about a second ago; from any thread, blocking.

        Raises a RayError while the registry cannot be asked.
        """
        return ray.get(self._registry.all_stats.remote(), timeout=NEWS_S)

    async def readings(self) -> dict[int, Reading]:
        """What every engine has to do, as of about a second ago."""
        return await self._registry.readings.remote()

    def shutdown(self) -> None:
        """End the engines and give their places back."""
        self._supervisor.shutdown()
        ray.kill(self._registry)


def _require_room(bundle: dict[str, float], count: int) -> None:
    """A placement group that can never fit would wait without a word."""
    if count < 1:
        raise UserError(f"a pool of {count} engines: it needs at least one")
    cluster = ray.cluster_resources()
    short = [n for n, amount in bundle.items() if amount * count > cluster.get(n, 0.0) + 1e-9]
    if short:
        need = {name: amount * count for name, amount in bundle.items()}
        raise UserError(
            f"{count} engines need {_amounts(need)}, the cluster has {_amounts(cluster, bundle)}: "
            f"too little {' and '.join(short)}; lower engine.count or add nodes"
        )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(n.get(k, 0.0) + 1e-9 >= v for k, v in bundle.items()) for n in nodes):
        raise UserError(
            f"no node has {_amounts(bundle)} for one engine: lower engine.cpus or engine.gpus"
        )


def _amounts(resources: dict[str, float], names: Iterable[str] = ("CPU", "GPU")) -> str:
    return ", ".join(f"{resources.get(name, 0.0):g} {name}" for name in names)
