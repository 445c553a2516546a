"""Engines that take turns with a learner: who sleeps is known to the engines alone.

Whoever puts them to sleep or publishes to them may have started a moment ago.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from actors.engine.engine import Engine, EngineOptions
from actors.pool.pool import EnginePool
from stepwiser.errors import UserError
from stepwiser.prompting.generation import Sample, Sampling
from tests.support.engines import engine_options, running_pool
from tests.support.scripted_engine import SleepyEngine
from tests.support.tiny import make_tiny_model

pytestmark = pytest.mark.slow

PROMPT = list(range(5, 40))
FEW = Sampling(max_tokens=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    return [
        str(make_tiny_model(root / "first")),
        str(make_tiny_model(root / "second", seed=1)),
        str(make_tiny_model(root / "wider", hidden_size=256)),
    ]


@pytest.fixture(scope="module")
def options(models) -> EngineOptions:
    return engine_options(models[0], enable_sleep=True)


@pytest.fixture(scope="module")
def pool(ray_local, options) -> Iterator[EnginePool]:
    with running_pool(options, 2) as pool:
        yield pool


async def _ask(actor: Any) -> list[Sample]:
    """One engine's own answer."""
    _, samples = await actor.generate.remote(PROMPT, FEW)
    return samples


async def _unanswered(pool: EnginePool) -> list[asyncio.Future[list[Sample]]]:
    """A request at every engine, which all of them keep: they are asleep."""
    requests = [asyncio.ensure_future(_ask(actor)) for actor in pool.actors]
    answered, _ = await asyncio.wait(requests, timeout=3.0)
    assert not answered, "an engine is awake"
    return requests


def test_another_client_wakes_what_the_first_one_put_to_sleep(pool, models):
    async def scenario():
        # As of a collector, and of the one that Ray starts when that one was killed.
        first, second = pool.client(), pool.client()
        await first.sleep()
        requests = await _unanswered(pool)
        await second.update_weights(models[1], 1, 60.0)
        (sample,) = await second.generate(PROMPT, FEW)
        assert sample.weight_version == 1
        assert [s.weight_version for (s,) in await asyncio.gather(*requests)] == [1, 1]

    asyncio.run(asyncio.wait_for(scenario(), 90.0))


def test_an_engine_that_died_asleep_sleeps_when_it_is_asked_again(pool, models):
    async def scenario():
        client = pool.client()
        await client.update_weights(models[0], 2, 60.0)
        await client.sleep()
        victim = await pool.actors[0].ready.remote()
        os.kill(victim, signal.SIGKILL)
        await client.sleep()  # of a learner that starts again
        assert await pool.actors[0].ready.remote() != victim
        # The pool has seen it come back, too, and had it look for newer weights.
        await asyncio.gather(*(actor.join.remote() for actor in pool.actors))
        requests = await _unanswered(pool)
        await client.update_weights(models[1], 3, 60.0)
        assert [s.weight_version for (s,) in await asyncio.gather(*requests)] == [3, 3]

    asyncio.run(asyncio.wait_for(scenario(), 240.0))


def test_whoever_asks_for_sleep_waits_until_all_are_asleep(pool, models):
    async def running() -> list[int]:
        stats = await asyncio.gather(*(actor.stats.remote() for actor in pool.actors))
        return [s.sequences_running for s in stats]

    async def scenario():
        client = pool.client()
        await client.update_weights(models[0], 4, 60.0)
        long = Sampling(max_tokens=200, n=32)
        work = [asyncio.ensure_future(client.generate(PROMPT, long)) for _ in range(4)]
        while not all(await running()):
            await asyncio.sleep(0.01)
        # A learner that was killed while it waited, and the next one.
        first = asyncio.ensure_future(client.sleep())
        await asyncio.sleep(0)
        await client.sleep()
        assert await running() == [0, 0]
        requests = await _unanswered(pool)
        await first
        await client.update_weights(models[1], 5, 60.0)
        assert [s.weight_version for (s,) in await asyncio.gather(*requests)] == [5, 5]
        # What had not begun when its engine was told waited there, as `Engine.sleep` says.
        assert [len(samples) for samples in await asyncio.gather(*work)] == [32] * 4

    asyncio.run(asyncio.wait_for(scenario(), 120.0))


def test_engines_that_came_after_the_client_are_put_to_sleep(ray_local, tmp_path):
    log = tmp_path / "log"
    log.touch()
    scripted = EngineOptions(model=str(log), max_num_seqs=4)
    pool = EnginePool(
        scripted, count=1, maximum=2, cpus=0.5, build=SleepyEngine, start_timeout_s=300.0
    )

    async def scenario():
        client = pool.client()
        while len((await pool._registry.watch.remote(0, "test", 0)).engines or ()) < 2:
            await asyncio.sleep(0.1)
        await client.sleep()

    try:
        asyncio.run(asyncio.wait_for(scenario(), 120.0))
    finally:
        pool.shutdown()
    assert log.read_text().splitlines() == ["sleep 1"] * 2


def test_memory_comes_back_for_weights_then_weights_then_for_the_cache(
    options, models, monkeypatch
):
    engine = Engine(options)
    engine.wait_ready(300.0)
    core = engine._core
    assert core is not None
    calls: list[Any] = []

    def spy(name: str) -> None:
        method = getattr(core._llm, name)

        def last_stats(*arguments: Any, **named: Any) -> Any:
            calls.append((name, *arguments))
            return method(*arguments, **named)

        monkeypatch.setattr(core._llm, name, last_stats)

    # vLLM's worker for CPUs ignores both; all that is above it does as on a GPU.
    monkeypatch.setattr(core, "on_cpu", False)
    for name in ("sleep", "wake_up", "collective_rpc"):
        spy(name)

    async def scenario():
        await asyncio.gather(engine.sleep(), engine.sleep())
        with pytest.raises(UserError, match="not those of"):
            await engine.update_weights(models[2], 1)
        await engine.sleep()  # of the learner that starts again: nothing had been woken
        waiting = asyncio.ensure_future(engine.generate(PROMPT, FEW))
        assert core._llm.is_sleeping()
        await engine.update_weights(models[1], 2)
        assert not core._llm.is_sleeping()
        (sample,) = await waiting
        assert sample.weight_version == 2
        await engine.update_weights(models[0], 3)  # awake: nothing to wake
        await engine.wake()
        # Half awake, it is woken before it sleeps again: 0.23 would ignore the sleep.
        await engine.sleep()
        await engine.wake(("weights",))
        await engine.sleep()
        await engine.wake()
        await engine.generate(PROMPT, FEW)

    try:
        asyncio.run(asyncio.wait_for(scenario(), 120.0))
    finally:
        engine.shutdown()
    load = ("collective_rpc", "stepwiser_update_weights")
    weights, cache = ("wake_up", ["weights"]), ("wake_up", ["kv_cache"])
    assert calls == [
        *(("sleep", 1), weights, load, cache),
        load,
        *(("sleep", 1), weights, cache, ("sleep", 1), ("wake_up", ["weights", "kv_cache"])),
    ]
