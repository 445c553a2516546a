"""Requests and weights outlive engines and the registry that die, with and without a reason.

The actors and the deaths are real; only the engine inside each actor is scripted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

import pytest
import ray

from actors.engine.engine import EngineOptions
from actors.pool.client import EnginesEnded, PoolClient
from actors.pool.pool import EnginePool
from actors.pool.quarantine import ISOLATION, MAX_ISOLATED_LOSSES
from stepwiser.prompting.generation import Sampling
from tests.support.scripted_engine import FATAL, SLOTS, Elsewhere, MortalEngine, work

pytestmark = pytest.mark.slow


@pytest.fixture
def pool(ray_local, tmp_path) -> Iterator[EnginePool]:
    log = tmp_path / "answers"
    log.touch()
    options = EngineOptions(model=str(log), max_num_seqs=SLOTS * 4)
    pool = EnginePool(options, count=2, build=MortalEngine, start_timeout_s=120.0)
    yield pool
    pool.shutdown()


@ray.remote(num_cpus=0)
class _Culprit:
    """Another process, with a fatal request among others."""

    async def work(self, client: PoolClient, count: int) -> tuple[int, str]:
        fatal = asyncio.ensure_future(client.generate([FATAL], Sampling(max_tokens=20)))
        answers = await work(client, range(20_000, 20_000 + count), max_tokens=40)
        try:
            await fatal
        except EnginesEnded as error:
            return len(answers), str(error)
        return len(answers), "answered"


def test_fatal_requests_of_two_processes_fail_and_no_other_one(pool, tmp_path):
    async def scenario():
        culprits = [_Culprit.remote() for _ in range(2)]
        theirs = [c.work.remote(pool.client(), 60) for c in culprits]
        answers = await work(pool, range(200), max_tokens=40)
        assert [samples[0].token_ids[0] for samples in answers] == list(range(200))
        for answered, reason in await asyncio.gather(*theirs):
            assert answered == 60
            assert "2 of them with no other request in them" in reason

    asyncio.run(asyncio.wait_for(scenario(), 400.0))
    deaths = [line.split() for line in (tmp_path / "deaths").read_text().splitlines()]
    assert len({pid for pid, _ in deaths}) <= 2 * (len(ISOLATION) + MAX_ISOLATED_LOSSES)
    assert sum(others == "0" for _, others in deaths) >= 2 * MAX_ISOLATED_LOSSES


def test_a_suspect_that_is_cancelled_leaves_its_engine(pool, monkeypatch):
    monkeypatch.setattr("actors.pool.quarantine.ISOLATION", (2,))

    async def scenario():
        doomed = asyncio.ensure_future(pool.generate([1], Sampling(max_tokens=10_000)))
        while (
            not (await pool.stats())[0].sequences_running
            + (await pool.stats())[1].sequences_running
        ):
            await asyncio.sleep(0.05)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        while sum(s.sequences_running for s in await pool.stats()):
            await asyncio.sleep(0.05)
        assert len(await work(pool, range(20))) == 20

    asyncio.run(asyncio.wait_for(scenario(), 60.0))


def test_weights_come_back_when_the_board_dies_with_an_engine(pool, tmp_path):
    def pid(_: object) -> int:
        return os.getpid()

    async def scenario():
        await pool.update_weights(str(tmp_path), 7, 30.0)
        other = Elsewhere.remote()
        await other.work.remote(pool.client(), 20)  # it knows of the new weights
        for actor in (pool._registry, pool.actors[0]):
            os.kill(await actor.__ray_call__.remote(pid), signal.SIGKILL)
        answers = await asyncio.gather(
            other.work.remote(pool.client(), 200), work(pool, range(200))
        )
        for part in answers:
            assert len(part) == 200
            assert {s.weight_version for samples in part for s in samples} == {7}
        # And the registry tells of engines again.
        while len(await pool.readings()) < 2:
            await asyncio.sleep(0.1)
        with contextlib.suppress(TimeoutError):
            membership = await asyncio.wait_for(pool._registry.watch.remote(0, "somebody", 0), 20.0)
        assert membership.engines is not None and len(membership.engines) == 2

    asyncio.run(asyncio.wait_for(scenario(), 180.0))
