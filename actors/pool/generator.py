"""RolloutGenerator: one engine in one Ray actor, with the weights that the registry has for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from actors.engine.engine import Engine, EngineFailure, EngineOptions, EngineStats
from actors.engine.gpu_memory import OutOfGpuMemory, admitting_less
from actors.pool.quarantine import UNLIMITED, QuarantineGate
from actors.pool.registry import Publication, StaleWeights
from actors.pool.routing import Load
from actors.weight_sync.transfer import TransferFailed
from stepwiser.errors import UserError
from stepwiser.prompting.generation import Sample, Sampling

_SUMMED = (
    "generated_tokens",
    "prompt_tokens",
    "cached_prompt_tokens",
    "finished_requests",
    "seconds",
    "busy_seconds",
)


@ray.remote
class RolloutGenerator:
    """Holds an engine. A restarted one loads the newest weights before it answers anything.

    When vLLM fails, open requests raise EngineFailure and the process ends, so that Ray starts it
    afresh; where it ran out of GPU memory, with less at a time. Counters go on over restarts.
    """

    def __init__(
        self,
        options: EngineOptions,
        registry: str,
        index: int,
        build: Callable[[EngineOptions], Any] = Engine,
    ) -> None:
        self._registry = ray.get_actor(registry)
        self._index = index
        if ray.get_runtime_context().was_current_actor_reconstructed:
            options = admitting_less(options, ray.get(self._registry.ran_out.remote(index)))
        self._engine = build(options)
        self._tokens: Counter[str] = Counter()
        self._sequences: Counter[str] = Counter()
        self._gate = QuarantineGate()
        self._serial: int | None = None
        self._before: EngineStats | None = None
        self._loading = asyncio.Lock()
        self._watch = asyncio.ensure_future(self._exit_with_engine())

    @ray.method(max_task_retries=-1)
    async def ready(self) -> int:
        """Process id, once the engine serves the newest weights; repeated when it restarts."""
        try:
            await self._catch_up(0)
            await self._engine.check_health()
        except EngineFailure:
            await self._watch  # ends the process, unless the engine has never been up
            raise
        return os.getpid()

    @ray.method(max_task_retries=-1)
    async def join(self) -> tuple[int, int]:
        """`ready` with whatever is newest at this moment: process id, and which publication."""
        pid = await self.ready()
        async with self._loading:
            await self._load_newest()
        return pid, self._serial or 0

    async def close(self) -> None:
        """End the engine and leave the process: its workers' shared memory would outlive a kill."""
        self._watch.cancel()
        await asyncio.to_thread(self._engine.shutdown)

    async def wait_for_death(self) -> None:
        """Answers only by dying with this process."""
        await asyncio.Event().wait()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, serial: int = 0, client: str = ""
    ) -> tuple[int, list[Sample]]:
        """Samples, with the publication they come from: ``serial`` or a later one."""
        return await self._answer(
            self.generate_isolated(UNLIMITED, prompt_ids, sampling, serial, client)
        )

    async def generate_isolated(
        self,
        most: int,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        serial: int = 0,
        client: str = "",
    ) -> AsyncGenerator[tuple[int, list[Sample]] | None]:
        """`generate` with at most ``most`` requests in the engine, this one included.

        Yields None when it is about to begin, then the answer: so its sender knows whether it was
        in an engine that died.
        """
        with self._counted(client, sampling.n * sampling.max_tokens, sampling.n):
            async with self._admitted(most, serial):
                yield None
                now = self._serial or 0
                yield now, await self._engine.generate(prompt_ids, sampling)

    async def generate_many(
        self, requests: Sequence[tuple[Sequence[int], Sampling]], serial: int = 0
    ) -> tuple[int, list[list[Sample]]]:
        """`generate` for many prompts, answered together."""
        await self._catch_up(serial)
        now = self._serial or 0
        work = [self._engine.generate(ids, sampling) for ids, sampling in requests]
        return now, list(await asyncio.gather(*work))

    async def score(
        self, token_ids: Sequence[int], start: int, serial: int = 0, client: str = ""
    ) -> tuple[int, list[float]]:
        """See `Engine.score`."""
        return await self._answer(self.score_isolated(UNLIMITED, token_ids, start, serial, client))

    async def score_isolated(
        self, most: int, token_ids: Sequence[int], start: int, serial: int = 0, client: str = ""
    ) -> AsyncGenerator[tuple[int, list[float]] | None]:
        """`score` as `generate_isolated` does it."""
        with self._counted(client, len(token_ids), 1):
            async with self._admitted(most, serial):
                yield None
                now = self._serial or 0
                yield now, await self._engine.score(token_ids, start)

    async def transfer_ranks(self) -> int:
        """How many workers of this engine can take part in a transfer from the learner now.

        Raises TransferFailed while it starts or loads: it takes part in none then.
        """
        if self._serial is None or self._loading.locked():
            raise TransferFailed("an engine is still loading other weights")
        return self._engine.options.tensor_parallel_size

    async def update_weights(self, publication: Publication) -> None:
        """Load a publication, unless this engine has it or a later one already."""
        async with self._loading:
            await self._load(publication)

    async def stats(self) -> EngineStats:
        """Counters since the pool was made, whatever restarts there were."""
        now, before = self._engine.stats(), self._before
        if before is None:
            return now
        return replace(
            now,
            **{name: getattr(before, name) + getattr(now, name) for name in _SUMMED},
        )

    @ray.method(max_task_retries=-1)
    async def sleep(self) -> None:
        """Returns when the engine sleeps, until it loads weights; repeated when it restarts."""
        try:
            # What is still to be loaded would wake it again.
            with contextlib.suppress(StaleWeights):
                await self._catch_up(0)
            async with self._loading:
                await self._engine.sleep()
        except EngineFailure:
            await self._watch  # as in `ready`
            raise

    async def _answer(self, steps: AsyncGenerator[Any]) -> Any:
        async with contextlib.aclosing(steps):
            return [step async for step in steps][-1]

    @contextlib.asynccontextmanager
    async def _admitted(self, most: int, serial: int) -> AsyncIterator[None]:
        async with self._gate.join(most):
            await self._catch_up(serial)
            if most < UNLIMITED:
                # What it may be blamed for shall not be the end of the one before it.
                await self._engine.check_health()
            yield

    @contextlib.contextmanager
    def _counted(self, client: str, tokens: int, sequences: int) -> Iterator[None]:
        self._tokens[client] += tokens
        self._sequences[client] += sequences
        try:
            yield
        finally:
            self._tokens[client] -= tokens
            self._sequences[client] -= sequences

    def _loads(self) -> dict[str, Load]:
        return {c: Load(self._tokens[c], n) for c, n in self._sequences.items() if n}

    async def _catch_up(self, serial: int) -> None:
        if self._serial is not None and self._serial >= serial:
            return
        async with self._loading:
            if self._serial is not None and self._serial >= serial:
                return
            await self._engine.start()
            await self._load_newest()
            self._serial = self._serial or 0
            if self._serial < serial:
                raise self._stale()

    async def _load_newest(self) -> None:
        try:
            newest = await self._registry.newest.remote()
            if newest is not None:
                await self._load(newest)
        except (RayError, StaleWeights) as error:
            raise self._stale() from error

    def _stale(self) -> StaleWeights:
        return StaleWeights(
            f"an engine restarted with the weights of {self._engine.options.model} and the newer "
            "ones are lost: publish them again"
        )

    async def _load(self, publication: Publication) -> None:
        if self._serial is not None and self._serial >= publication.serial:
            return
        await self._engine.start()
        await self._engine.update_weights(await publication.payload(), publication.version)
        self._serial = publication.serial

    async def _exit_with_engine(self) -> None:
        """The end of the engine is the end of this process, and every second a note of its counts.

        Returns when the engine could not start at all; a restarted one is tried again, for the GPU
        memory of the one before may not have been free yet.
        """
        again = ray.get_runtime_context().was_current_actor_reconstructed
        if again:
            self._before = await self._registry.last_stats.remote(self._index)
        try:
            await self._engine.start()
        except (EngineFailure, UserError):
            if not again:
                return
        try:
            while True:
                await self._engine.check_health()
                self._registry.report.remote(
                    self._index, self._serial or 0, await self.stats(), self._loads()
                )
                await asyncio.sleep(1.0)
        except EngineFailure as failure:
            if isinstance(failure.__cause__, OutOfGpuMemory):
                await self._registry.note_ran_out.remote(self._index)
            # Answers on their way out still have to leave, and no crash shall chase the last.
            await asyncio.sleep(2.0)
            os._exit(1)
