"""The learner's weights in real engines, by every way, while it trains."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load, load_file

from actors.learner.train import GRPOTrainOptions, train_grpo
from actors.pool.client import PoolClient
from actors.pool.pool import EnginePool
from actors.weight_sync.transfer import TransferFailed, TransferSpec
from stepwiser.prompting.generation import Sampling
from stepwiser.training.experience import ExperienceBatch
from stepwiser.training.schedule import LearningRate
from tests.support.engines import engine_options, running_pool
from tests.support.scripted_collector import scripted_batch
from tests.support.tiny import make_tiny_model
from tests.support.train_options import train_options

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]

PROMPT = list(range(5, 40))
STEPS = 2
SHARED = Path("/dev/shm")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    # Wide enough for the embedding to be above ZeRO-3's threshold for keeping a weight whole.
    return str(make_tiny_model(tmp_path_factory.mktemp("model"), hidden_size=256))


SMALL = {"max_model_len": 128, "max_num_seqs": 8, "kv_cache_bytes": 16 * 2**20}


@pytest.fixture(scope="module")
def pool(ray_local, model) -> Iterator[EnginePool]:
    with running_pool(engine_options(model, **SMALL), 2) as pool:
        yield pool


@pytest.fixture(scope="module")
def parallel_pool(ray_local, model) -> Iterator[EnginePool]:
    """One engine whose layers are cut over two ranks."""
    before = set(SHARED.glob("vllm_dist_*"))
    with running_pool(engine_options(model, **SMALL, tensor_parallel_size=2), 1) as pool:
        yield pool
    # vLLM never takes away what ranks on a CPU reduce through.
    for segment in set(SHARED.glob("vllm_dist_*")) - before:
        segment.unlink()


@ray.remote(num_cpus=0)
class Collector:
    """Batches that depend on the step alone, engines that are real."""

    def __init__(self, pool: PoolClient, breaks_at: int | None = None) -> None:
        self.pool = pool
        self.breaks_at = breaks_at
        self.calls: list[tuple[str, int]] = []
        self.scores: dict[int, list[list[float]]] = {}
        self.copies: dict[int, list[bytes]] = {}

    async def next_batch(self, step: int) -> ExperienceBatch:
        self.calls.append(("next_batch", step))
        return scripted_batch(step)

    async def publish(self, version: int, source: Any, timeout_s: float) -> dict[str, float]:
        self.calls.append((type(source).__name__, version))
        if version == self.breaks_at and isinstance(source, TransferSpec):
            raise TransferFailed("injected")
        await self.pool.update_weights(source, version, timeout_s)
        work = [actor.score.remote(PROMPT, 1) for actor in self.pool.actors]
        self.scores[version] = [scores for _, scores in await asyncio.gather(*work)]
        if isinstance(source, list):
            await self.keep_copy(version, source)
        return {"reward": 0.0}

    async def keep_copy(self, version: int, refs: list[Any]) -> None:
        self.copies[version] = list(await asyncio.gather(*refs))
        await self.pool.keep_copy(version, refs)

    async def sleep(self) -> None:
        self.calls.append(("sleep", -1))
        await self.pool.sleep()

    def seen(self) -> tuple[Any, Any, Any]:
        return self.calls, self.scores, self.copies


def _options(
    directory: Any, model: str, backend: Any, stage: Any, **changes: Any
) -> GRPOTrainOptions:
    given = {
        "steps": STEPS,
        "minibatches": 1,
        "learning_rate": LearningRate(1e-3),
        "checkpoint_every": 100,
        "publish_timeout_s": 240.0,
        "weight_transfer": backend,
        "weight_bucket_mb": 1,
    }
    # Two ranks beside three engines, on four logical CPUs.
    group = {"zero_stage": stage, "cpus_per_worker": 0.5}
    return train_options(directory, model, f"{backend}-{stage}", group, **(given | changes))


def _gap(model: str, copy: list[bytes], scores: list[float]) -> float:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    state = {name: tensor for part in copy for name, tensor in load(part).items()}
    assert set(reference.load_state_dict(state, strict=False).missing_keys) <= {"lm_head.weight"}
    with torch.no_grad():
        expected = reference(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    expected = expected[torch.arange(len(PROMPT) - 1), torch.tensor(PROMPT[1:])]
    return (torch.tensor(scores) - expected).abs().mean().item()


@pytest.mark.parametrize(
    ("backend", "stage", "colocated"),
    [("object_store", 2, False), ("nccl", 3, False), ("cuda_ipc", 3, True)],
)
def test_engines_agree_with_the_learner_after_each_publish(
    pool, model, tmp_path, backend, stage, colocated
):
    collector = Collector.remote(pool.client())
    options = _options(tmp_path, model, backend, stage, colocated=colocated)
    result = train_grpo(options, collector)
    calls, scores, copies = ray.get(collector.seen.remote())
    source = "list" if backend == "object_store" else "TransferSpec"
    assert [call for call in calls if call[0] in ("list", "TransferSpec")] == [
        (source, v) for v in range(3)
    ]
    slept = [i for i, (kind, _) in enumerate(calls) if kind == "sleep"]
    if colocated:
        # Before the model is loaded, and between the samples of a step and its updates.
        assert [calls[i + 1] for i in slept] == [(source, version) for version in range(3)]
        assert [calls[i - 1][0] for i in slept[1:]] == ["next_batch"] * STEPS
    else:
        assert not slept
    assert all("publish_fallbacks" not in rendezvous for rendezvous in result.metrics)
    for version in range(STEPS + 1):
        for engine in scores[version]:
            assert _gap(model, copies[version], engine) <= 1e-5
    assert scores[0] != scores[1] != scores[2]
    last = {n: t for part in copies[STEPS] for n, t in load(part).items()}
    for name, tensor in load_file(f"{result.model_dir}/model.safetensors").items():
        assert torch.equal(last[name], tensor), name


@pytest.mark.parametrize("backend", ["nccl", "cuda_ipc"])
def test_each_rank_of_a_tensor_parallel_engine_takes_its_shard(
    parallel_pool, model, tmp_path, backend
):
    collector = Collector.remote(parallel_pool.client())
    train_grpo(_options(tmp_path, model, backend, 2, steps=1), collector)
    calls, scores, copies = ray.get(collector.seen.remote())
    published = [call for call in calls if call[0] != "next_batch"]
    assert published == [("TransferSpec", 0), ("TransferSpec", 1)]
    for version in (0, 1):
        (engine,) = scores[version]
        assert _gap(model, copies[version], engine) <= 1e-5
    assert scores[0] != scores[1]


def test_a_broken_transfer_goes_by_the_store_and_restarted_engines_get_what_was_sent(
    pool, model, tmp_path
):
    collector = Collector.remote(pool.client(), breaks_at=1)
    result = train_grpo(_options(tmp_path, model, "nccl", 2), collector)
    calls, _, copies = ray.get(collector.seen.remote())
    published = [call for call in calls if call[0] != "next_batch"]
    assert published == [("TransferSpec", 0), ("TransferSpec", 1), ("list", 1), ("TransferSpec", 2)]
    assert [rendezvous.get("publish_fallbacks") for rendezvous in result.metrics] == [1.0, None]

    async def scenario() -> None:
        victim = await pool.actors[0].ready.remote()
        os.kill(victim, signal.SIGKILL)
        (sample,) = await pool.generate(PROMPT, Sampling(max_tokens=2))
        assert sample.weight_version == STEPS
        while await pool.actors[0].ready.remote() == victim:
            await asyncio.sleep(0.1)
        _, again = await pool.actors[0].score.remote(PROMPT, 1)
        assert _gap(model, copies[STEPS], again) <= 1e-5

    asyncio.run(asyncio.wait_for(scenario(), 400.0))
