"""A pool of two real engines: routing, weights, and the death of engines and publishers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file, save

from actors.engine.engine import EngineOptions
from actors.pool.pool import EnginePool, PoolClient
from stepwiser.errors import UserError
from stepwiser.prompting.generation import Sampling
from tests.support.engines import engine_options, forward_logprobs, running_pool
from tests.support.tiny import make_tiny_model

pytestmark = pytest.mark.slow

PROMPT = list(range(5, 40))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [make_tiny_model(root / str(seed), seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def options(models) -> EngineOptions:
    return engine_options(models[0])


@pytest.fixture(scope="module")
def pool(ray_local, options) -> Iterator[EnginePool]:
    with running_pool(options, 2) as pool:
        yield pool


async def _check_each_engine(pool: PoolClient, model: Path) -> None:
    """Every engine, asked directly, answers with this model's weights."""
    expected = forward_logprobs(model, PROMPT, 1)
    for actor in pool.actors:
        _, scores = await actor.score.remote(PROMPT, 1)
        assert (torch.tensor(scores) - expected).abs().max() < 1e-4


def test_one_name_stays_on_one_engine_and_many_names_spread(pool):
    async def finished():
        return [s.finished_requests for s in await pool.stats()]

    async def scenario():
        sampling = Sampling(max_tokens=4, n=2)
        before = await finished()
        for _ in range(4):
            await pool.generate(PROMPT, sampling, affinity="one trajectory")
        after = await finished()
        assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0, 4]
        names = [f"trajectory {i}" for i in range(24)]
        await asyncio.gather(*(pool.generate(PROMPT, sampling, affinity=n) for n in names))
        spread = [b - a for a, b in zip(after, await finished(), strict=True)]
        assert sum(spread) == 24 and min(spread) >= 6

    asyncio.run(scenario())


def test_new_weights_reach_every_engine_and_every_client(pool, models):
    @ray.remote(num_cpus=0)
    class Elsewhere:
        def __init__(self, client: PoolClient) -> None:
            self.client = client

        async def versions(self) -> set[int]:
            work = [self.client.generate(PROMPT, Sampling(max_tokens=3)) for _ in range(8)]
            return {s.weight_version for samples in await asyncio.gather(*work) for s in samples}

    async def scenario():
        other = Elsewhere.remote(pool.client())
        await pool.update_weights(str(models[1]), 7, 60.0)
        await _check_each_engine(pool, models[1])
        assert await other.versions.remote() == {7}
        # Versions may go back: a learner that resumes publishes an earlier one again.
        await pool.update_weights((models[0] / "model.safetensors").read_bytes(), 3, 60.0)
        await _check_each_engine(pool, models[0])
        assert await other.versions.remote() == {3}

    asyncio.run(scenario())


def test_a_publication_that_hangs_is_cut_and_the_next_one_reaches_everybody(pool, models):
    async def scenario():
        hung = await pool.actors[0].ready.remote()
        os.kill(hung, signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError, match="weight version 8 within 2 s"):
                await pool.update_weights(str(models[1]), 8, 2.0)
        finally:
            os.kill(hung, signal.SIGCONT)
        # What was late comes first and is replaced.
        await pool.update_weights(str(models[0]), 3, 60.0)
        await _check_each_engine(pool, models[0])
        assert await pool.actors[0].ready.remote() == hung, "nobody was restarted"
        samples = await asyncio.gather(
            *(pool.generate(PROMPT, Sampling(max_tokens=3), str(i)) for i in range(8))
        )
        assert {sample.weight_version for row in samples for sample in row} == {3}

    asyncio.run(asyncio.wait_for(scenario(), 180.0))


def test_weights_of_another_model_are_refused_by_name(pool, models):
    async def scenario():
        await pool.update_weights(str(models[0]), 4, 60.0)
        with pytest.raises(UserError, match=r"unknown: some\.weight"):
            await pool.update_weights(save({"some.weight": torch.zeros(2)}), 5, 60.0)
        (sample,) = await pool.generate(PROMPT, Sampling(max_tokens=2))
        assert sample.weight_version == 4
        assert (await pool._registry.newest.remote()).version == 4

    asyncio.run(scenario())


def test_a_prompt_that_does_not_fit_is_the_callers_error(pool):
    with pytest.raises(UserError, match="300 tokens does not fit"):
        asyncio.run(pool.generate([5] * 300, Sampling(max_tokens=1)))


def test_a_cancelled_request_leaves_its_engine(pool):
    async def busy() -> int:
        stats = await pool.stats()
        return sum(s.sequences_running + s.sequences_waiting for s in stats)

    async def scenario():
        request = pool.generate(PROMPT, Sampling(max_tokens=210, n=64))
        doomed = asyncio.ensure_future(request)
        while not await busy():
            await asyncio.sleep(0.01)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        while await busy():
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(scenario(), 60.0))
    assert [pool._router.own(i).sequences for i in (0, 1)] == [0, 0]


@ray.remote(num_cpus=0)
class _Publisher:
    """A learner's rank 0: owns the buckets it publishes."""

    async def publish(self, client: PoolClient, model: str, version: int) -> None:
        items = list(load_file(Path(model) / "model.safetensors").items())
        halves = [dict(items[::2]), dict(items[1::2])]
        await client.update_weights([ray.put(save(half)) for half in halves], version, 60.0)


def test_nothing_is_lost_when_an_engine_and_the_publisher_are_killed(pool, models):
    async def scenario():
        publisher = _Publisher.remote()
        await publisher.publish.remote(pool.client(), str(models[2]), 11)
        await _kept(pool)
        ray.kill(publisher)

        sampling = Sampling(max_tokens=200, n=4, logprobs=True)
        work = [pool.generate(PROMPT[: 5 + i % 20], sampling, str(i)) for i in range(40)]
        running = asyncio.gather(*work)
        counts = await pool.stats()
        while sum(s.generated_tokens for s in counts) == 0 or counts[0].sequences_running == 0:
            await asyncio.sleep(0.01)
            counts = await pool.stats()
        victim = await pool.actors[0].ready.remote()
        os.kill(victim, signal.SIGKILL)

        answers = await running
        assert [len(samples) for samples in answers] == [4] * 40
        assert {s.weight_version for samples in answers for s in samples} == {11}
        assert await pool.actors[0].ready.remote() != victim
        await _check_each_engine(pool, models[2])
        while pool._returning:
            pool._refresh()
            await asyncio.sleep(0.05)
        # Counters go on where they were a moment before the end.
        after = await pool.stats()
        assert after[0].seconds >= counts[0].seconds - 2.0

    asyncio.run(asyncio.wait_for(scenario(), 240.0))


async def _kept(pool: PoolClient) -> None:
    """Wait until the registry has taken the newest weights over from their publisher."""
    newest = await pool._registry.newest.remote()
    await pool._registry.keep.remote(newest.serial)


async def _breaks(pool: EnginePool, break_core: Callable[[Any], int]) -> None:
    """The second engine ends while there is work for both: all is answered, and it comes back."""
    broken = await pool.actors[1].__ray_call__.remote(break_core)
    work = [pool.generate(PROMPT, Sampling(max_tokens=20)) for _ in range(16)]
    answers = await asyncio.gather(*work)
    assert all(len(samples) == 1 for samples in answers)
    while await pool.actors[1].ready.remote() == broken:
        await asyncio.sleep(0.1)


def test_a_failure_inside_vllm_moves_the_requests_and_restarts_the_engine(pool):
    def break_core(generator) -> int:
        def broken():
            raise FloatingPointError("the adder is on fire")

        generator._engine._core.step = broken
        return os.getpid()

    asyncio.run(asyncio.wait_for(_breaks(pool, break_core), 240.0))


def test_an_engine_that_ran_out_of_gpu_memory_comes_back_and_admits_less(pool, options):
    def run_out(generator) -> int:
        def break_worker(worker) -> None:
            def too_much(*_, **__):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

            worker.model_runner.execute_model = too_much

        generator._engine._core._llm.collective_rpc(break_worker)
        return os.getpid()

    async def scenario():
        await _breaks(pool, run_out)
        stats = [await actor.stats.remote() for actor in pool.actors]
        assert [s.max_num_seqs for s in stats] == [
            options.max_num_seqs,
            options.max_num_seqs // 2,
        ]

    asyncio.run(asyncio.wait_for(scenario(), 240.0))


def test_a_pool_that_can_never_fit_is_refused_at_once(ray_local, options):
    with pytest.raises(UserError, match="3 engines need 12 CPU.*the cluster has 4 CPU"):
        EnginePool(options, count=3, cpus=4.0)
    with pytest.raises(UserError, match="2 engines need 2 CPU, 2 GPU.*too little GPU"):
        EnginePool(options, count=2, gpus=1.0)


def test_a_pool_without_room_now_names_what_is_free(pool, options):
    with pytest.raises(
        UserError, match="0 of 1 engines were up after 1 s, 0 had found room.*2 CPU"
    ):
        EnginePool(options, count=1, cpus=3.0, start_timeout_s=1.0)


def test_a_model_that_is_not_there_is_named(pool, tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        EnginePool(EngineOptions(model=str(tmp_path / "nowhere")), count=1, start_timeout_s=120.0)
