"""A learner's adapters in a real engine of a pool while it trains, and after that engine died."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load

from actors.learner.train import train_grpo
from actors.pool.client import PoolClient
from stepwiser.config.training import LoraConfig
from stepwiser.prompting.generation import Sampling
from stepwiser.run.model_exports import adapter_of
from stepwiser.training.experience import ExperienceBatch
from stepwiser.training.schedule import LearningRate
from tests.support.engines import engine_options, forward_logprobs, running_pool
from tests.support.scripted_collector import scripted_batch
from tests.support.tiny import make_tiny_model
from tests.support.train_options import train_options

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]

PROMPT = list(range(5, 60))
LORA = LoraConfig(rank=4, alpha=8.0)
STEPS = 2


@ray.remote(num_cpus=0)
class Collector:
    """Batches that depend on the step alone, engines that are real."""

    def __init__(self, pool: PoolClient) -> None:
        self.pool = pool
        self.seen: dict[int, tuple[list[bytes], list[float], int]] = {}

    async def next_batch(self, step: int) -> ExperienceBatch:
        return scripted_batch(step)

    async def publish(self, version: int, source: Any, timeout_s: float) -> dict[str, float]:
        await self.pool.update_weights(source, version, timeout_s)
        scores = await self.pool.score(PROMPT, 1)
        (sample,) = await self.pool.generate(PROMPT, Sampling(max_tokens=2))
        blobs = list(await asyncio.gather(*source))
        self.seen[version] = blobs, scores, sample.weight_version
        return {"reward": 0.0}

    def all_seen(self) -> Any:
        return self.seen


def test_after_each_publish_the_engine_answers_as_the_learner_and_a_restarted_one_too(tmp_path):
    model = str(make_tiny_model(tmp_path / "model"))
    small = {"max_model_len": 128, "max_num_seqs": 8, "kv_cache_bytes": 16 * 2**20}
    options = train_options(
        tmp_path,
        model,
        "lora",
        {"num_workers": 1, "lora": LORA},
        steps=STEPS,
        minibatches=1,
        learning_rate=LearningRate(1e-2),
        checkpoint_every=100,
        publish_timeout_s=240.0,
    )
    with running_pool(engine_options(model, adapter_rank=LORA.rank, **small), 1) as pool:
        collector = Collector.remote(pool.client())
        result = train_grpo(options, collector)
        seen = ray.get(collector.all_seen.remote())
        expected = {}
        for version, (blobs, scores, said) in seen.items():
            adapter = {n: t for blob in blobs for n, t in load(blob).items()}
            expected[version] = forward_logprobs(model, PROMPT, 1, adapter, LORA.alpha / LORA.rank)
            assert said == version
            assert _gap(scores, expected[version]) < 1e-4
        assert sorted(seen) == [0, 1, 2]
        # Else an engine that never took an adapter would pass as well.
        assert _gap(seen[0][1], expected[1]) > 1e-2 < _gap(seen[1][1], expected[2])
        assert _gap(seen[2][1], forward_logprobs(result.model_dir, PROMPT, 1)) < 1e-4
        assert adapter_of(result.model_dir) is not None

        async def restarted() -> list[float]:
            victim = await pool.actors[0].ready.remote()
            os.kill(victim, signal.SIGKILL)
            return await pool.score(PROMPT, 1)

        again = asyncio.run(asyncio.wait_for(restarted(), 400.0))
        assert _gap(again, expected[STEPS]) < 1e-4


def _gap(scores: list[float], expected: torch.Tensor) -> float:
    return (torch.tensor(scores) - expected).abs().max().item()
