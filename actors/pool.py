"""EnginePool: several generators behind one `generate`.

The pool owns the actors and their placement groups, one group an engine, so that each can come and
go alone. Its client only routes; it is what other processes get.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from actors.engine import EngineFailure, EngineOptions, EngineStats, engine_environment
from actors.generator import Publication, RolloutGenerator, StaleWeights, WeightBoard
from stepwiser.errors import UserError
from stepwiser.generation import Sample, Sampling

MAX_ATTEMPTS = 8
"""Engines a request may lose before it fails: one that kills every engine must not go on for ever.
"""
MAX_RESTARTS = 100
"""Per engine: ends a loop of crashes, and a day of preemptions does not reach it."""
_CONCURRENCY = 10_000


class PoolClient:
    """Routes requests to engines; picklable, each copy counts its own load.

    An engine that dies is avoided until it is back with the newest weights; its requests move to
    the others, or wait for it when there are none.
    """

    def __init__(self, actors: Sequence[Any], board: Any) -> None:
        self.actors = list(actors)
        self._board = board
        self._load = [0] * len(self.actors)
        self._returning: dict[int, Future[int]] = {}
        self._lost: dict[int, BaseException] = {}
        self._serial = 0
        self._published: Publication | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PoolClient, (self.actors, self._board)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        """``sampling.n`` samples of weights at least as new as any this client has seen.

        Raises UserError for a prompt that does not fit, EngineFailure when no engine is left or
        `MAX_ATTEMPTS` engines died with this request.
        """
        return await self._ask(
            sampling.n * sampling.max_tokens,
            affinity,
            lambda actor: actor.generate.remote(prompt_ids, sampling, self._serial),
        )

    async def score(
        self, token_ids: Sequence[int], start: int, affinity: str | None = None
    ) -> list[float]:
        """Log-probs of ``token_ids[start:]``, each given all tokens before it."""
        return await self._ask(
            len(token_ids),
            affinity,
            lambda actor: actor.score.remote(token_ids, start, self._serial),
        )

    async def update_weights(self, source: Any, version: int, timeout_s: float) -> None:
        """Load weights into all engines at once; running requests go on with them.

        ``source``: a directory of safetensors, safetensors bytes, or a reference (or a list of
        them) to such bytes. Raises UserError when the engines refuse the weights and TimeoutError
        when one does not answer in time. An engine that is down loads them when it is back.
        """
        if isinstance(source, bytes):
            source = ray.put(source)
        if isinstance(source, ray.ObjectRef):
            source = [source]
        publication = Publication(time.time_ns(), version, source)
        try:
            async with asyncio.timeout(timeout_s):
                await self._publish(publication)
        except TimeoutError as error:
            raise TimeoutError(
                f"the engines did not all load weight version {version} within {timeout_s:g} s: "
                "look at their logs, or allow more time"
            ) from error
        self._published, self._serial = publication, publication.serial
        self._board.keep.remote(publication.serial)

    async def stats(self) -> list[EngineStats]:
        """Counters of every engine; of one that is down, what it last reported."""
        return list(await asyncio.gather(*map(self._stats, range(len(self.actors)))))

    async def _stats(self, index: int) -> EngineStats:
        if index not in self._lost and self._is_up(index):
            try:
                return await self.actors[index].stats.remote()
            except RayActorError:
                self._mark_down(index)
        return await self._board.noted.remote(index) or EngineStats()

    # --- routing --------------------------------------------------------------------------------

    def route(self, affinity: str | None, cost: int) -> int | None:
        """The least loaded engine that is up, or the home of ``affinity`` if that is about as busy.

        Loads and ``cost`` are in tokens at most still to come. None when no engine is up.
        """
        up = [i for i in self._living() if self._is_up(i)]
        if not up:
            return None
        idlest = min(up, key=self._load.__getitem__)
        if affinity is None:
            return idlest
        # Rendezvous hashing: when an engine goes, only its own prefixes move.
        home = max(up, key=lambda i: hashlib.blake2b(f"{i}/{affinity}".encode()).digest())
        fair = 1.25 * self._load[idlest] + 4 * cost
        return home if self._load[home] <= fair else idlest

    def _living(self) -> list[int]:
        return [i for i in range(len(self.actors)) if i not in self._lost]

    def _is_up(self, index: int) -> bool:
        back = self._returning.get(index)
        if back is None:
            return True
        if not back.done():
            return False
        del self._returning[index]
        error = back.exception()
        if isinstance(error, ActorUnavailableError):
            self._mark_down(index)
            return False
        # One without the newest weights says so itself, to whoever asks it for samples.
        if error is None or isinstance(error, StaleWeights):
            return True
        self._lost[index] = error
        return False

    def _mark_down(self, index: int) -> None:
        if index not in self._returning:
            # Ray repeats this one call until the actor is back, or lost for good.
            self._returning[index] = self.actors[index].ready.remote().future()

    async def _ask(self, cost: int, affinity: str | None, call: Callable[[Any], Any]) -> Any:
        error: BaseException | None = None
        for _ in range(MAX_ATTEMPTS):
            index = await self._choose(affinity, cost)
            self._load[index] += cost
            try:
                serial, answer = await _answer(call(self.actors[index]))
            except StaleWeights as stale:
                if self._published is None:
                    raise
                error = stale
                await self._board.post.remote(self._published)
            except (EngineFailure, RayActorError) as failure:
                error = failure
                self._mark_down(index)
            else:
                self._serial = max(self._serial, serial)
                return answer
            finally:
                self._load[index] -= cost
        raise EngineFailure(
            f"a request failed on {MAX_ATTEMPTS} engines in a row, the last time with: {error}"
        ) from error

    async def _choose(self, affinity: str | None, cost: int) -> int:
        while (index := self.route(affinity, cost)) is None:
            if not self._living():
                last = next(reversed(self._lost.values()))
                raise EngineFailure(f"all {len(self.actors)} engines are lost: {last}") from last
            await asyncio.sleep(0.25)
        return index

    async def _publish(self, publication: Publication) -> None:
        # First the board: an engine that dies from now on comes back with these.
        replaced = await self._board.post.remote(publication)
        try:
            await asyncio.gather(*(self._update(i, publication) for i in self._living()))
        except Exception:
            # Nobody has them: names and shapes are checked before anything is loaded.
            await self._board.post.remote(replaced)
            raise

    async def _update(self, index: int, publication: Publication) -> None:
        try:
            await _answer(self.actors[index].update_weights.remote(publication))
        except (EngineFailure, RayActorError):
            self._mark_down(index)


async def _answer(ref: Any) -> Any:
    """Await a call; the engine's own exceptions come back as they were raised there."""
    try:
        return await ref
    except asyncio.CancelledError:
        ray.cancel(ref)  # or the engine would go on for nobody
        raise
    except RayTaskError as error:
        if isinstance(error.cause, UserError | EngineFailure | StaleWeights):
            raise error.cause from None
        raise


class EnginePool(PoolClient):
    """Creates the engines, waits until they serve, and takes them down.

    Each engine is a placement group of ``cpus`` and ``gpus`` (fractions share a GPU). Raises
    UserError, before anything is started, when the cluster can never hold them.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        count: int,
        cpus: float = 1.0,
        gpus: float = 0.0,
        start_timeout_s: float = 900.0,
    ) -> None:
        bundle = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        _require_room(bundle, count)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        # By name: a handle among the arguments would tie an engine's restart to this process's
        # object store, as Ray warns for each of them.
        name = f"stepwiser-weights-{uuid.uuid4().hex}"
        board = WeightBoard.options(name=name, scheduling_strategy=here).remote()
        self._groups: list[PlacementGroup] = []
        super().__init__([], board)
        try:
            for index in range(count):
                group = placement_group([bundle])
                self._groups.append(group)
                self.actors.append(_make_generator(options, name, index, group, cpus, gpus))
            self._load = [0] * count
            self.pids = self._wait_ready(bundle, start_timeout_s)
        except BaseException:
            self.shutdown()
            raise

    def _wait_ready(self, bundle: dict[str, float], timeout_s: float) -> list[int]:
        calls = [actor.ready.remote() for actor in self.actors]
        try:
            return ray.get(calls, timeout=timeout_s)
        except GetTimeoutError as error:
            up, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
            placed = sum(group.wait(0) for group in self._groups)
            raise UserError(
                f"{len(up)} of {len(calls)} engines were up after {timeout_s:g} s, {placed} had "
                f"found room for {_amounts(bundle)}; free now: "
                f"{_amounts(ray.available_resources())}. Free resources, lower engine.count or "
                "raise engine.start_timeout_s"
            ) from error
        except RayTaskError as error:
            if isinstance(error.cause, UserError | EngineFailure):
                raise error.cause from None
            raise
        except RayActorError as error:
            raise EngineFailure(f"an engine died while it started: {error}") from error

    def client(self) -> PoolClient:
        """A client for another process."""
        return PoolClient(self.actors, self._board)

    def shutdown(self) -> None:
        """End the engines and give their places back."""
        for actor in [*self.actors, self._board]:
            ray.kill(actor)
        for group in self._groups:
            remove_placement_group(group)
        self._groups = []


def _make_generator(
    options: EngineOptions,
    board: str,
    index: int,
    group: PlacementGroup,
    cpus: float,
    gpus: float,
) -> Any:
    variables = engine_environment(options) | {"OMP_NUM_THREADS": str(max(1, int(cpus)))}
    return RolloutGenerator.options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_restarts=MAX_RESTARTS,
        max_concurrency=_CONCURRENCY,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        runtime_env={"env_vars": variables},
    ).remote(options, board, index)


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
