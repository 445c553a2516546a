"""Pools on clusters of several nodes: engines come with nodes, go with them, and lose nothing.

The nodes, the actors and the deaths are real; only the engine inside each actor is scripted.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import ray
from ray.util.placement_group import placement_group_table

from actors.engine.engine import EngineFailure, EngineOptions
from actors.pool.pool import EnginePool
from cluster.local_nodes import LocalCluster, local_cluster
from stepwiser.config import PromptConfig
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.tasks import load_base_model_dir, make_problems
from tests.support.engines import engine_options
from tests.support.scripted_engine import (
    SLOTS,
    Elsewhere,
    ScriptedEngine,
    SluggishEngine,
    work,
)

pytestmark = pytest.mark.slow

WAIT_S = 120.0


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """A head without engines' resources, to which the driver is connected; nodes are added."""
    with local_cluster() as cluster:
        yield cluster


@pytest.fixture
def make_pool(cluster, tmp_path) -> Iterator[Callable[..., EnginePool]]:
    pools = []

    def make(count: int = 1, **options) -> EnginePool:
        log = tmp_path / "answers"
        log.touch()
        pool = EnginePool(
            EngineOptions(model=str(log), max_num_seqs=SLOTS),
            count=count,
            start_timeout_s=WAIT_S,
            **{"build": ScriptedEngine, **options},
        )
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.shutdown()


async def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not after {WAIT_S:g} s"
        await asyncio.sleep(0.1)


def _pids(answers: list[list[Sample]]) -> Counter[int]:
    return Counter(samples[0].token_ids[-1] for samples in answers)


def _numbers(answers: list[list[Sample]]) -> list[int]:
    return [samples[0].token_ids[0] for samples in answers]


def _drain(cluster: LocalCluster, node, seconds: float) -> None:
    """What a preempted machine does (Ray's own SIGTERM handler): announce its end."""
    from ray.core.generated import autoscaler_pb2

    accepted, why = ray._raylet.GcsClient(address=cluster.address).drain_node(
        node.node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "the test takes it",
        int((time.time() + seconds) * 1000),
    )
    assert accepted, why


def test_engines_come_with_a_node_and_every_client_sees_them(cluster, make_pool):
    cluster.add_node(1)
    pool = make_pool(1, maximum=3)

    async def scenario():
        other = Elsewhere.remote()
        mine = asyncio.ensure_future(work(pool, range(200)))
        theirs = asyncio.ensure_future(_as_future(other.work.remote(pool.client(), 200)))
        await asyncio.sleep(2.0)
        assert pool.serving == pool.placed == 1
        held, then = pool.held_seconds, time.monotonic()
        cluster.add_node(2)
        await _until(lambda: pool.serving == 3, "two more engines")
        assert pool.placed == 3
        waited = time.monotonic() - then
        assert waited <= pool.held_seconds - held < 3 * waited
        held, then = pool.held_seconds, time.monotonic()
        for answers, first in ((await mine, 0), (await theirs, 10_000)):
            assert _numbers(answers) == list(range(first, first + 200))
            assert len(_pids(answers)) == 3
        waited = time.monotonic() - then
        assert pool.held_seconds - held == pytest.approx(3 * waited, rel=0.05, abs=0.1)
        assert sum(s.finished_requests for s in await pool.stats()) == 400
        counters = await asyncio.to_thread(pool.counters)
        assert sorted(counters) == [0, 1, 2] and min(c.seconds for c in counters.values()) > 0

    asyncio.run(asyncio.wait_for(scenario(), 180.0))


async def _as_future(ref: ray.ObjectRef) -> list[list[Sample]]:
    return await ref


def test_a_node_that_vanishes_takes_no_request_with_it(cluster, make_pool):
    nodes = [cluster.add_node(1) for _ in range(3)]
    pool = make_pool(3)

    async def scenario():
        asked = asyncio.ensure_future(work(pool, range(240)))
        await asyncio.sleep(1.5)
        await asyncio.to_thread(cluster.remove_node, nodes[1], False)
        await _until(lambda: pool.serving == 2, "the pool notices")
        answers = await asked
        assert _numbers(answers) == list(range(240))
        # Where there is room again, it is replaced.
        cluster.add_node(1)
        await _until(lambda: pool.serving == 3, "a replacement")
        assert len(_pids(await work(pool, range(60)))) == 3

    asyncio.run(asyncio.wait_for(scenario(), 240.0))
    _ends_clean(pool)


def test_a_node_that_is_ten_times_slower_gets_a_tenth_of_the_work(cluster, make_pool, tmp_path):
    cluster.add_node(1)
    cluster.add_node(1)
    pool = make_pool(2, build=SluggishEngine)
    answers = asyncio.run(asyncio.wait_for(work(pool, range(240)), 120.0))
    assert _numbers(answers) == list(range(240))
    slow = _pids(answers)[int((tmp_path / "sluggard").read_text())]
    # In the time that the other takes for 218 it can do 22. Shared evenly it would have 120.
    assert 4 <= slow <= 44, slow


def test_a_node_that_announces_its_end_answers_what_it_has(cluster, make_pool, tmp_path):
    nodes = [cluster.add_node(1) for _ in range(2)]
    pool = make_pool(2)

    async def scenario():
        asked = asyncio.ensure_future(work(pool, range(160), max_tokens=100))
        await asyncio.sleep(2.0)
        _drain(cluster, nodes[0], 60.0)
        drained = time.time()
        await _until(lambda: pool.serving == 1, "one drains")
        await _until(
            lambda: len(pool._supervisor.engines) == 2 and pool.serving == 1, "its place asked"
        )
        stays = _numbers(await work(pool, range(500, 504)))
        assert stays == [500, 501, 502, 503]
        assert _numbers(await asked) == list(range(160))
        # Nothing was cut off and asked again: each request was answered by one engine, once.
        lines = [line.split() for line in (tmp_path / "answers").read_text().splitlines()]
        assert max(Counter(number for number, *_ in lines).values()) == 1
        last = {pid: max(float(t) for _, p, _, t in lines if p == pid) for _, pid, *_ in lines}
        # The drained one ended its work within its batch, the other went on.
        assert len(last) == 2 and min(last.values()) < drained + 6.0 < max(last.values())

    asyncio.run(asyncio.wait_for(scenario(), 240.0))


def test_weights_reach_engines_that_come_before_and_after(cluster, make_pool, tmp_path):
    cluster.add_node(1)
    pool = make_pool(1, maximum=3)

    async def scenario():
        await pool.update_weights(str(tmp_path), 7, 30.0)
        cluster.add_node(1)
        await _until(lambda: pool.serving == 2, "one more engine")
        answers = await work(pool, range(40))
        assert {s.weight_version for samples in answers for s in samples} == {7}
        assert len(_pids(answers)) == 2
        # A publication in the very moment of a join.
        cluster.add_node(1)
        version = 8
        while pool.serving < 3:
            await pool.update_weights(str(tmp_path), version, 30.0)
            answers = await work(pool, range(8), max_tokens=1)
            assert {s.weight_version for samples in answers for s in samples} == {version}
            version += 1
        answers = await work(pool, range(40))
        assert {s.weight_version for samples in answers for s in samples} == {version - 1}
        assert [s.weight_version for s in await pool.stats()] == [version - 1] * 3

    asyncio.run(asyncio.wait_for(scenario(), 180.0))


def test_engines_that_cannot_start_do_not_take_the_others_along(cluster, make_pool, tmp_path):
    cluster.add_node(1)
    pool = make_pool(1, maximum=2)

    async def scenario():
        cluster_log = tmp_path / "answers"
        broken = EngineOptions(model="broken", max_num_seqs=SLOTS)
        pool._supervisor._template = replace(pool._supervisor._template, options=broken)
        for held in pool._supervisor.engines[1:]:
            pool._supervisor._remove(held.index)
        cluster.add_node(1)
        await _until(lambda: pool._supervisor._failures >= 5, "it gives up")
        assert len(await work(pool, range(8))) == 8
        assert cluster_log.read_text().count("\n") == 8

    asyncio.run(asyncio.wait_for(scenario(), 180.0))


def test_a_pool_that_is_shut_down_leaves_nothing_and_says_so(cluster, make_pool):
    cluster.add_node(2)
    pool = make_pool(2, maximum=4)
    client = pool.client()

    async def scenario():
        running = asyncio.ensure_future(work(client, range(40), max_tokens=300))
        await asyncio.sleep(1.0)
        await asyncio.to_thread(pool.shutdown)
        with pytest.raises(EngineFailure, match="lost|shut down"):
            await running

    asyncio.run(asyncio.wait_for(scenario(), 120.0))
    _ends_clean(pool)


def _ends_clean(pool: EnginePool) -> None:
    pool.shutdown()
    held = pool.held_seconds
    states = {row["state"] for row in placement_group_table().values()}
    assert states <= {"REMOVED"}
    deadline = time.monotonic() + WAIT_S
    while ray.available_resources().get("CPU") != ray.cluster_resources().get("CPU"):
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)
    assert not pool._supervisor._thread.is_alive()
    assert pool.held_seconds == held and pool.placed == 0


def test_a_vllm_engine_joins_while_another_works(cluster):
    cluster.add_node(1)
    problems, model = make_problems(40, seed=3), str(load_base_model_dir())
    prompts = PromptFormat.from_model_dir(model, PromptConfig())
    pool = EnginePool(
        engine_options(model, max_num_seqs=32),
        count=1,
        maximum=2,
        start_timeout_s=300.0,
    )

    async def scenario():
        asked = 0

        async def solve(question: str) -> list[Sample]:
            sampling = Sampling(max_tokens=100, n=16)
            return await pool.generate(prompts.policy_ids(question), sampling, question)

        first = asyncio.gather(*(solve(p.question) for p in problems))
        await asyncio.sleep(0.1)
        cluster.add_node(1)
        answers = await first
        asked += len(problems)
        deadline = time.monotonic() + 400.0
        while pool.serving < 2 or (await pool.stats())[1].finished_requests == 0:
            assert time.monotonic() < deadline, "the second engine never worked"
            answers += await asyncio.gather(*(solve(p.question) for p in problems))
            asked += len(problems)

        assert [len(samples) for samples in answers] == [16] * asked
        assert all(sample.token_ids for samples in answers for sample in samples)
        stats = await pool.stats()
        assert sum(s.finished_requests for s in stats) == asked
        generated = sum(len(s.token_ids) for samples in answers for s in samples)
        assert sum(s.generated_tokens for s in stats) == generated
        readings = await pool.readings()
        assert [r.max_num_seqs for r in readings.values()] == [32, 32]

    try:
        asyncio.run(asyncio.wait_for(scenario(), 500.0))
    finally:
        _ends_clean(pool)
