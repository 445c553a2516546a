"""PoolClient: one `generate` over engines that come and go, for any process."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError

from actors.engine.engine import EngineFailure, EngineStats
from actors.pool.quarantine import RequestHistory
from actors.pool.registry import Membership, Publication, StaleWeights
from actors.pool.request import answer, call_engine, reason
from actors.pool.routing import Load, Router
from actors.weight_sync.transfer import TransferFailed, TransferSpec
from stepwiser.prompting.generation import Sample, Sampling

MAX_STALE = 8
"""Engines in a row that may lack weights this client knows of: somebody must publish again."""
STALE_S = 1.0
"""Between two such questions, where another process has to publish; the pool's own looks once a
second whether its registry still has what it published."""
PULSE_S = 0.25
"""How often a client with waiting requests looks for news of the engines."""


class EnginesLost(EngineFailure):
    """There is no engine, and none will come."""


class EnginesEnded(EngineFailure):
    """The request ends every engine it meets: asking again would only end more of them."""


class PoolClient:
    """Routes requests to engines; picklable, each copy has a queue and a name of its own.

    An engine that dies is avoided until it is back with the newest weights; its requests move to
    the others, or wait for it when there are none. Engines that the pool adds or takes away are
    learnt of from the registry, by one call that is open while there is work.
    """

    def __init__(self, registry: Any, slots: int, membership: Membership | None = None) -> None:
        self._registry = registry
        self._slots = slots
        self._name = uuid.uuid4().hex
        self._router = Router(slots)
        self._engines: dict[int, Any] = {}
        self._membership = 0
        self._closed: str | None = None
        self._watch: Future[Membership] | None = None
        self._returning: dict[int, Future[int]] = {}
        self._lost: dict[int, BaseException] = {}
        self._serial = 0
        self._published: Publication | None = None
        self._numbers = count()
        self._under_way: Counter[str] = Counter()
        self._waiting: dict[int, tuple[asyncio.Future[int], Load]] = {}
        self._pulse: asyncio.Task[None] | None = None
        if membership is not None:
            self._adopt(membership)

    def __reduce__(self) -> tuple[Any, ...]:
        membership = Membership(self._membership, self._engines)
        return PoolClient, (self._registry, self._slots, membership)

    @property
    def actors(self) -> list[Any]:
        """The engines' actors, as far as this client knows."""
        return list(self._engines.values())

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        """``sampling.n`` samples of weights at least as new as any this client has seen.

        Raises UserError for a prompt that does not fit, EnginesLost when no engine is left and
        EnginesEnded when engines died under this request alone (see `actors.pool.quarantine`).
        """
        cost = Load(sampling.n * sampling.max_tokens, sampling.n)
        with self._counted(affinity) as first:
            return await self._ask(cost, affinity, first, "generate", prompt_ids, sampling)

    async def score(
        self, token_ids: Sequence[int], start: int, affinity: str | None = None
    ) -> list[float]:
        """Log-probs of ``token_ids[start:]``, each given all tokens before it."""
        with self._counted(affinity) as first:
            cost = Load(len(token_ids), 1)
            return await self._ask(cost, affinity, first, "score", token_ids, start)

    async def update_weights(self, source: Any, version: int, timeout_s: float) -> None:
        """Load weights into all engines at once; running requests go on with them.

        ``source``: a directory of safetensors, safetensors bytes, a reference (or a list of them)
        to such bytes, or the transfer of a learner that sends them itself. Raises UserError when
        the engines refuse the weights, TransferFailed when a learner's do not arrive, and
        TimeoutError when an engine does not answer in time. An engine that is down loads them when
        it is back, and a new one before it answers anything; for a transfer that is once
        `keep_copy` was called.

        Engines that sleep are woken by this, whichever client put them to sleep.
        """
        if isinstance(source, bytes):
            source = ray.put(source)
        if isinstance(source, ray.ObjectRef):
            source = [source]
        transfer = source if isinstance(source, TransferSpec) else None
        publication = Publication(time.time_ns(), version, None if transfer else source, transfer)
        try:
            async with asyncio.timeout(timeout_s):
                await self._publish(publication)
        except TimeoutError as error:
            raise TimeoutError(
                f"the engines did not all load weight version {version} within {timeout_s:g} s: "
                "look at their logs, or allow more time"
            ) from error
        self._published, self._serial = replace(publication, transfer=None), publication.serial
        self._registry.keep.remote(publication.serial)

    async def keep_copy(self, version: int, refs: list[Any]) -> None:
        """Blobs of what a learner has sent itself, for engines that come later."""
        published = self._published
        if published is not None and published.version == version and published.source is None:
            self._published = replace(published, source=refs)
            await self._registry.supply.remote(published.serial, refs)

    async def sleep(self) -> None:
        """Have every engine finish what it runs and free its GPU memory, weights included (they
        move to host memory), until `update_weights`.

        Returns when all of them sleep, and waits for one that restarts. Which do already is for
        them to know: this client, or the one before it, may have started a moment ago. An engine
        that comes or restarts after this is awake until it is asked again.
        """
        # Other engines may be there than this client has heard of.
        news = self._registry.watch.options(max_task_retries=-1)
        self._adopt(await news.remote(0, self._name, self._router.waiting))
        await asyncio.gather(*(self._sleep(i) for i in self._engines))

    async def _sleep(self, index: int) -> None:
        try:
            await answer(self._engines[index].sleep.remote())
        except (EngineFailure, RayActorError):
            self._mark_down(index)

    async def stats(self) -> list[EngineStats]:
        """Counters of every engine there has been, the oldest first; of one that is down or gone,
        what it last reported."""
        self._refresh()
        last_stats = await self._registry.all_stats.remote()
        up = [i for i in self._engines if i not in self._router.down]
        fresh = await asyncio.gather(*map(self._stats, up))
        last_stats |= {i: stats for i, stats in zip(up, fresh, strict=True) if stats is not None}
        down = {i: EngineStats() for i in self._engines}
        return [stats for _, stats in sorted((down | last_stats).items())]

    async def _stats(self, index: int) -> EngineStats | None:
        try:
            return await self._engines[index].stats.remote()
        except RayActorError:
            self._mark_down(index)
            return None

    # --- news of the engines --------------------------------------------------------------------

    def _refresh(self) -> None:
        """Take in what has arrived of the registry and of engines that were down; never waits."""
        watch = self._watch
        if watch is not None and watch.done():
            self._watch = None
            error = watch.exception()
            if error is None:
                self._adopt(watch.result())
            elif not isinstance(error, ActorUnavailableError):
                self._closed = f"the pool was shut down ({type(error).__name__})"
        if self._watch is None and self._closed is None and self._registry is not None:
            waiting = self._router.waiting
            self._watch = self._registry.watch.remote(
                self._membership, self._name, waiting
            ).future()
        for index, back in tuple(self._returning.items()):
            if back.done():
                self._take_back(index, back.exception())

    def _adopt(self, membership: Membership) -> None:
        self._closed = membership.closed
        if membership.engines is not None and membership.serial > self._membership:
            self._membership = membership.serial
            self._engines = dict(membership.engines)
            for known in (self._returning, self._lost):
                for index in known.keys() - self._engines.keys():
                    del known[index]
            self._router.set_members(self._engines)
        if membership.elsewhere is not None:
            self._router.set_elsewhere(membership.elsewhere)
        self._dispatch()

    def _mark_down(self, index: int) -> None:
        if index in self._engines and index not in self._returning and index not in self._lost:
            # Ray repeats this one call until the actor is back, or lost for good.
            self._returning[index] = self._engines[index].ready.remote().future()
            self._router.set_down(index, True)

    def _take_back(self, index: int, error: BaseException | None) -> None:
        del self._returning[index]
        if isinstance(error, ActorUnavailableError):
            self._mark_down(index)
        # One without the newest weights says so itself, to whoever asks it for samples.
        elif error is None or isinstance(error, StaleWeights):
            self._router.set_down(index, False)
            self._dispatch()
        else:
            self._lost[index] = error

    # --- requests -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _counted(self, affinity: str | None) -> Iterator[bool]:
        """A request of that name is under way; whether it is the only one."""
        if affinity is None:
            yield False
            return
        self._under_way[affinity] += 1
        try:
            yield self._under_way[affinity] == 1
        finally:
            self._under_way[affinity] -= 1
            if not self._under_way[affinity]:
                del self._under_way[affinity]

    async def _ask(
        self, cost: Load, affinity: str | None, first: bool, method: str, *request: Any
    ) -> Any:
        history = RequestHistory()
        stale = 0
        while True:
            index = await self._place(cost, affinity, first)
            if index not in self._engines:
                continue  # it left in the moment before
            call = (*request, self._serial, self._name)
            try:
                serial, answer = await call_engine(self._engines[index], method, call, history)
            except StaleWeights:
                stale += 1
                if stale == MAX_STALE:
                    raise
                if self._published is not None:
                    await self._registry.post.remote(self._published)
                else:
                    await asyncio.sleep(STALE_S)
            except (EngineFailure, RayActorError, ObjectLostError) as failure:
                # A lost object is an answer that went with its node before it was fetched.
                self._mark_down(index)
                if history.is_poison:
                    raise EnginesEnded(f"a request {history}{reason(failure)}") from failure
            else:
                self._serial = max(self._serial, serial)
                return answer
            finally:
                self._leave(index, cost)

    async def _place(self, cost: Load, affinity: str | None, first: bool) -> int:
        """Wait for an engine with room; from its return on, ``cost`` counts there."""
        self._refresh()
        number = next(self._numbers)
        engine = self._router.submit(number, affinity, cost, first)
        if engine is not None:
            return engine
        granted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (granted, cost)
        if self._pulse is None or self._pulse.done():
            self._pulse = asyncio.create_task(self._beat())
        try:
            return await granted
        except BaseException:
            self._router.drop(number)
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._leave(granted.result(), cost)  # cancelled between the grant and its news
            raise
        finally:
            del self._waiting[number]

    def _leave(self, index: int, cost: Load) -> None:
        self._router.finish(index, cost)
        self._dispatch(index)

    def _dispatch(self, engine: int | None = None) -> None:
        for number, index in self._router.dispatch(engine):
            granted, cost = self._waiting[number]
            if granted.done():
                self._router.finish(index, cost)  # cancelled a moment ago
            else:
                granted.set_result(index)

    async def _beat(self) -> None:
        """While requests wait: news of the engines may be what lets them go."""
        while self._waiting:
            self._refresh()
            self._dispatch()
            gone = self._hopeless()
            for granted, _ in tuple(self._waiting.values()) if gone else ():
                if not granted.done():
                    granted.set_exception(EnginesLost(gone))
            await asyncio.sleep(PULSE_S)

    def _hopeless(self) -> str | None:
        """Why waiting for an engine is in vain."""
        if len(self._lost) < len(self._engines) or self._closed is None:
            return None
        lost = next(reversed(self._lost.values()), None)
        why = f"{self._closed}: {lost}" if lost else self._closed
        return f"all engines are lost: {why}"

    # --- weights --------------------------------------------------------------------------------

    async def _publish(self, publication: Publication) -> None:
        # First the registry: an engine that dies or comes from now on has these.
        replaced, membership = await self._registry.post.remote(publication)
        self._adopt(membership)
        try:
            if publication.transfer is None:
                await asyncio.gather(*(self._update(i, publication) for i in self._engines))
            else:
                await self._stream(publication, publication.transfer)
        except Exception:
            # Nobody has them, or their learner will say them again: names and shapes are checked
            # before anything is loaded.
            await self._registry.withdraw.remote(publication.serial, replaced)
            raise

    async def _stream(self, publication: Publication, transfer: TransferSpec) -> None:
        """Let the engines that are up take part in a learner's transfer; all must succeed."""
        up = [i for i in self._engines if i not in self._router.down]
        try:
            workers_of = await asyncio.gather(
                *(answer(self._engines[i].transfer_ranks.remote()) for i in up)
            )
            if not up:
                raise TransferFailed("no engine is up")
            calls, rank = [], 1
            for index, workers in zip(up, workers_of, strict=True):
                own = replace(transfer, rank=rank, size=1 + sum(workers_of))
                call = self._engines[index].update_weights.remote(
                    replace(publication, transfer=own)
                )
                calls.append(answer(call))
                rank += workers
            await asyncio.gather(*calls)
        except (EngineFailure, RayActorError) as error:
            # Which one is found out when the weights are said again.
            raise TransferFailed(f"an engine was lost: {type(error).__name__}") from error

    async def _update(self, index: int, publication: Publication) -> None:
        if index in self._lost:
            return
        try:
            await answer(self._engines[index].update_weights.remote(publication))
        except (EngineFailure, RayActorError):
            self._mark_down(index)
