"""Suspicious requests are isolated step by step, nobody else is blamed; no engine, no Ray."""

from __future__ import annotations

import asyncio
import contextlib
import random

from actors.pool.quarantine import (
    ISOLATION,
    MAX_ISOLATED_LOSSES,
    UNLIMITED,
    QuarantineGate,
    RequestHistory,
)


def test_two_shared_losses_say_nothing_and_isolated_ones_tell() -> None:
    history, limits = RequestHistory(), []
    while not history.is_poison:
        limits.append(history.max_concurrent)
        history.lost()
    assert limits == [UNLIMITED, UNLIMITED, 16, 1, 1]
    assert str(history) == "ended 5 engines, 2 of them with no other request in them"


async def _stay(gate: QuarantineGate, most: int, inside: list[int], peak: list[int]) -> None:
    async with gate.join(most):
        inside.append(most)
        assert len(inside) <= min(inside)
        peak.append(len(inside))
        await asyncio.sleep(0.001)
        inside.remove(most)


def test_all_get_in_and_no_limit_is_exceeded() -> None:
    async def scenario() -> list[int]:
        rng, gate, peak = random.Random(1), QuarantineGate(), []
        inside: list[int] = []
        limits = [rng.choice((*[UNLIMITED] * 60, 16, 2, 1)) for _ in range(400)]
        await asyncio.gather(*(_stay(gate, most, inside, peak) for most in limits))
        assert len(peak) == 400 and not inside and not gate._limits
        return peak

    assert max(asyncio.run(scenario())) > 16


def test_those_who_give_up_waiting_leave_no_trace() -> None:
    async def scenario() -> None:
        gate = QuarantineGate()
        async with gate.join():
            waits = [asyncio.ensure_future(_stay(gate, 1, [], [])) for _ in range(3)]
            later = asyncio.ensure_future(_stay(gate, UNLIMITED, [], []))
            await asyncio.sleep(0)
            waits[1].cancel()
        # Let in and cancelled before it could know.
        waits[0].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waits[0]
        await waits[2]
        await later
        assert gate._inside == 0 and not gate._queue

    asyncio.run(asyncio.wait_for(scenario(), 10.0))


class _Engine:
    """Dies with everyone inside when one of the culprits is."""

    def __init__(self) -> None:
        self.deaths = 0
        self.start()

    def start(self) -> None:
        self.gate, self.dead = QuarantineGate(), asyncio.Event()


async def _ask(engines: list[_Engine], kills: bool, rng: random.Random) -> bool:
    """Whether a request is answered; as `PoolClient` goes about it."""
    history = RequestHistory()
    while not history.is_poison:
        engine = rng.choice(engines)
        inside, dead = False, engine.dead
        death = asyncio.ensure_future(dead.wait())

        async def work(engine: _Engine = engine) -> None:
            nonlocal inside
            async with engine.gate.join(history.max_concurrent):
                inside = True
                await asyncio.sleep(rng.uniform(0.001, 0.003))
                if kills:
                    engine.deaths += 1
                    engine.dead.set()
                    engine.start()
                    await asyncio.Event().wait()

        answer = asyncio.ensure_future(work())
        await asyncio.wait([answer, death], return_when=asyncio.FIRST_COMPLETED)
        death.cancel()
        if answer.done():
            return True
        answer.cancel()
        # One that shares an engine with any is not told whether it was let in.
        if inside or history.max_concurrent == UNLIMITED:
            history.lost()
    return False


def test_only_culprits_are_convicted_and_after_few_deaths() -> None:
    async def scenario(seed: int, count: int) -> None:
        rng = random.Random(seed)
        engines = [_Engine() for _ in range(count)]
        kills = [i in (3, 90) for i in range(200)]
        answered = await asyncio.gather(*(_ask(engines, k, rng) for k in kills))
        assert answered == [not k for k in kills]
        assert sum(e.deaths for e in engines) <= 2 * (len(ISOLATION) + MAX_ISOLATED_LOSSES)

    for seed in range(10):
        for count in (1, 2, 4):
            asyncio.run(asyncio.wait_for(scenario(seed, count), 60.0))
