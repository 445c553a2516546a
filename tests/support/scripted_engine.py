"""An engine without a model, for the real generator actor around it: what a pool does is tested
with many engines, and starting vLLM for each would take longer than the test."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ray

from actors.engine.engine import EngineFailure, EngineOptions, EngineStats
from actors.pool.client import PoolClient
from stepwiser.prompting.generation import Sample, Sampling

SLOTS = 4
"""Sequences decoded at once by one scripted engine."""
FATAL = 666
"""First id of a prompt that ends a `MortalEngine`."""


class ScriptedEngine:
    """Takes ``max_tokens`` hundredths of a second for a request, `SLOTS` sequences at a time.

    Answers with the prompt, its process id and the version of its weights.
    """

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self._slots = asyncio.Semaphore(options.max_num_seqs)
        self._open = self._running = self._finished = 0
        self._version = 0
        self._started = time.monotonic()

    async def start(self) -> None:
        if self.options.model == "broken":
            raise EngineFailure("this engine cannot start")

    async def check_health(self) -> None:
        pass

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> list[Sample]:
        self._open += sampling.n
        version = self._version
        try:
            await asyncio.gather(*(self._one(sampling) for _ in range(sampling.n)))
        finally:
            self._open -= sampling.n
        self._finished += 1
        with Path(self.options.model).open("a") as log:
            log.write(f"{prompt_ids[0]} {os.getpid()} {version} {time.time()}\n")
        sample = Sample((*prompt_ids, os.getpid()), "", "stop", weight_version=version)
        return [sample] * sampling.n

    async def _one(self, sampling: Sampling) -> None:
        async with self._slots:
            self._running += 1
            try:
                await asyncio.sleep(0.01 * sampling.max_tokens)
            finally:
                self._running -= 1

    async def update_weights(self, payload: str, version: int) -> None:
        await asyncio.sleep(0.1)
        self._version = version

    def stats(self) -> EngineStats:
        return EngineStats(
            finished_requests=self._finished,
            generated_tokens=self._finished,
            sequences_running=self._running,
            sequences_waiting=self._open - self._running,
            max_num_seqs=self.options.max_num_seqs,
            weight_version=self._version,
            seconds=time.monotonic() - self._started,
        )


class SluggishEngine(ScriptedEngine):
    """The first to start takes ten times as long as the others."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        try:
            Path(options.model).with_name("sluggard").open("x").write(str(os.getpid()))
            self._factor = 10
        except FileExistsError:
            self._factor = 1

    async def _one(self, sampling: Sampling) -> None:
        await super()._one(replace(sampling, max_tokens=self._factor * sampling.max_tokens))


class SleepyEngine(ScriptedEngine):
    """Writes down that it was put to sleep."""

    async def sleep(self, level: int = 1) -> None:
        with Path(self.options.model).open("a") as log:
            log.write(f"sleep {level}\n")


class MortalEngine(ScriptedEngine):
    """Ends its process a moment after it was asked something fatal."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> list[Sample]:
        if prompt_ids[0] == FATAL:
            with Path(self.options.model).with_name("deaths").open("a") as log:
                log.write(f"{os.getpid()} {self._open}\n")
            asyncio.get_running_loop().call_later(0.1, os._exit, 1)
        return await super().generate(prompt_ids, sampling)


async def work(client: PoolClient, numbers: range, max_tokens: int = 20) -> list[list[Sample]]:
    """A request for each number, four to a name."""
    sampling = Sampling(max_tokens=max_tokens)
    calls = [client.generate([n], sampling, f"trajectory {n // 4}") for n in numbers]
    return await asyncio.gather(*calls)


@ray.remote(num_cpus=0)
class Elsewhere:
    """A client in another process, as a labeler's."""

    async def work(self, client: PoolClient, count: int) -> list[list[Sample]]:
        return await work(client, range(10_000, 10_000 + count))


class TouchyEngine(ScriptedEngine):
    """Ends its process a moment after it was asked about a prompt of many tokens."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> list[Sample]:
        if len(prompt_ids) > 100:
            with Path(self.options.model).with_name("deaths").open("a") as log:
                log.write(f"{os.getpid()}\n")
            asyncio.get_running_loop().call_later(0.1, os._exit, 1)
        return await super().generate(prompt_ids, sampling)
