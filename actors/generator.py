"""RolloutGenerator: one engine in one Ray actor, and the board it reads its weights from."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError

from actors.engine import Engine, EngineFailure, EngineOptions, EngineStats
from stepwiser.errors import UserError
from stepwiser.generation import Sample, Sampling

_SUMMED = (
    "generated_tokens",
    "prompt_tokens",
    "cached_prompt_tokens",
    "finished_requests",
    "seconds",
    "busy_seconds",
)


@dataclass(frozen=True)
class Publication:
    """Weights that every engine of a pool shall have."""

    serial: int
    """Orders publications; versions need not grow, since a learner may resume an earlier one."""
    version: int
    source: str | list[Any]
    """A directory of safetensors, or references to safetensors blobs."""

    async def payload(self) -> str | list[bytes]:
        if isinstance(self.source, str):
            return self.source
        return list(await asyncio.gather(*self.source))


class StaleWeights(RuntimeError):
    """An engine has older weights than the caller knows of, and cannot get newer ones."""


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class WeightBoard:
    """Keeps what engines need when they restart: the newest publication, and their counters.

    The blobs are copied: their publisher, often a training worker, may die before they are needed.
    """

    def __init__(self) -> None:
        self._newest: Publication | None = None
        self._in_use = 0
        self._stats: dict[int, EngineStats] = {}

    async def post(self, publication: Publication | None) -> Publication | None:
        """Put up a publication; returns the one it replaces."""
        replaced, self._newest = self._newest, publication
        return replaced

    async def keep(self, serial: int) -> None:
        """Take over the blobs of a publication that every engine has loaded."""
        publication = self._newest
        if publication is None or publication.serial != serial:
            return
        payload = await publication.payload()
        if isinstance(payload, str) or self._newest is not publication:
            return
        refs = [ray.put(blob) for blob in payload]
        self._newest = Publication(serial, publication.version, refs)

    async def newest(self) -> Publication | None:
        """None before the first publication.

        Raises StaleWeights when engines have later weights than this board, which has restarted.
        """
        if self._in_use > (self._newest.serial if self._newest else 0):
            raise StaleWeights("the newest weights were lost with the board that kept them")
        return self._newest

    async def note(self, index: int, serial: int, stats: EngineStats) -> None:
        """What an engine serves, and its counters."""
        self._in_use = max(self._in_use, serial)
        self._stats[index] = stats

    async def noted(self, index: int) -> EngineStats | None:
        """The counters an engine last sent."""
        return self._stats.get(index)


@ray.remote
class RolloutGenerator:
    """Holds an engine. A restarted one loads the newest weights before it answers anything.

    When vLLM fails, open requests raise EngineFailure and the process ends, so that Ray starts it
    afresh. Counters go on over restarts.
    """

    def __init__(self, options: EngineOptions, board: str, index: int) -> None:
        self._engine = Engine(options)
        self._board = ray.get_actor(board)
        self._index = index
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

    async def node_id(self) -> str:
        return ray.get_runtime_context().get_node_id()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, serial: int = 0
    ) -> tuple[int, list[Sample]]:
        """Samples, with the publication they come from: ``serial`` or a later one."""
        await self._catch_up(serial)
        now = self._serial or 0
        return now, await self._engine.generate(prompt_ids, sampling)

    async def generate_many(
        self, requests: Sequence[tuple[Sequence[int], Sampling]], serial: int = 0
    ) -> tuple[int, list[list[Sample]]]:
        """`generate` for many prompts, answered together."""
        await self._catch_up(serial)
        now = self._serial or 0
        work = [self._engine.generate(ids, sampling) for ids, sampling in requests]
        return now, list(await asyncio.gather(*work))

    async def score(
        self, token_ids: Sequence[int], start: int, serial: int = 0
    ) -> tuple[int, list[float]]:
        """See `Engine.score`."""
        await self._catch_up(serial)
        now = self._serial or 0
        return now, await self._engine.score(token_ids, start)

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

    async def sleep(self, level: int = 1) -> None:
        await self._engine.sleep(level)

    async def wake(self, tags: tuple[str, ...] | None = None) -> None:
        await self._engine.wake(tags)

    async def _catch_up(self, serial: int) -> None:
        if self._serial is not None and self._serial >= serial:
            return
        async with self._loading:
            if self._serial is not None and self._serial >= serial:
                return
            await self._engine.start()
            try:
                newest = await self._board.newest.remote()
                if newest is not None:
                    await self._load(newest)
            except (RayError, StaleWeights) as error:
                raise self._stale() from error
            self._serial = self._serial or 0
            if self._serial < serial:
                raise self._stale()

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
            self._before = await self._board.noted.remote(self._index)
        try:
            await self._engine.start()
        except (EngineFailure, UserError):
            if not again:
                return
        try:
            while True:
                await self._engine.check_health()
                self._board.note.remote(self._index, self._serial or 0, await self.stats())
                await asyncio.sleep(1.0)
        except EngineFailure:
            # Answers on their way out still have to leave, and no crash shall chase the last.
            await asyncio.sleep(2.0)
            os._exit(1)
