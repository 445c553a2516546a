"""An engine whose speed is what it is told, however many share the cores: `StubEngine`'s answers at
the pace of an `EngineRate`."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from actors.engine.engine import EngineOptions, EngineStats
from benchmarks.annotation.stub_engine import StubEngine
from benchmarks.scale_sim.services import EngineRate
from stepwiser.prompting.generation import Sample, Sampling

RATE = EngineRate.of(tokens_per_s=1_280, slots=64, step_s=0.01)
LOOK_S = 0.02


class Pace:
    """Sequences that are decoded together, and those that wait; who asks tells the time."""

    def __init__(self, rate: EngineRate, now: float) -> None:
        self._rate = rate
        self._now = now
        self._tokens = 0.0
        """Of one sequence that is decoded all the time."""
        self.made = 0.0
        """Tokens, of all sequences together."""
        self._running: list[tuple[float, int]] = []
        self._waiting: deque[tuple[int, int]] = deque()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, number: int, tokens: int) -> None:
        """A sequence of so many tokens comes."""
        self._waiting.append((number, tokens))

    def until(self, now: float) -> list[int]:
        """Sequences that have ended by then, and the next ones begun where those ended."""
        ended = []
        while True:
            while self._waiting and len(self._running) < self._rate.slots:
                number, tokens = self._waiting.popleft()
                heapq.heappush(self._running, (self._tokens + tokens, number))
            if not self._running:
                break
            token_s = self._rate.step_s + len(self._running) * self._rate.sequence_s
            end = self._now + (self._running[0][0] - self._tokens) * token_s
            each = (min(end, now) - self._now) / token_s
            self.made += len(self._running) * each
            if end > now:
                self._tokens += each
                break
            self._now = end
            self._tokens, number = heapq.heappop(self._running)
            ended.append(number)
        self._now = now
        return ended


class PacedEngine(StubEngine):
    """Stands where `actors.engine.engine.Engine` does."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._pace = Pace(RATE, time.monotonic())
        self._ends: dict[int, asyncio.Future[None]] = {}
        self._number = 0
        self._turning: asyncio.Task[None] | None = None

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> list[Sample]:
        samples = await super().generate(prompt_ids, sampling)
        ends = []
        for sample in samples:
            self._number += 1
            self._ends[self._number] = asyncio.get_running_loop().create_future()
            ends.append(self._ends[self._number])
            self._pace.add(self._number, len(sample.token_ids))
        if self._turning is None or self._turning.done():
            self._turning = asyncio.create_task(self._turn())
        await asyncio.gather(*ends)
        return samples

    async def _turn(self) -> None:
        while self._ends:
            for number in self._pace.until(time.monotonic()):
                self._ends.pop(number).set_result(None)
            await asyncio.sleep(LOOK_S)
        self._pace.until(time.monotonic())

    def stats(self) -> EngineStats:
        return replace(
            super().stats(),
            generated_tokens=round(self._pace.made),
            sequences_running=self._pace.running,
            sequences_waiting=self._pace.waiting,
        )
