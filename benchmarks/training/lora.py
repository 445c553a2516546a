"""What adapters save: time of a publication, and the learner's memory, against full training.

The same random model of 125 million weights (float32, one rank, one engine in a process of its
own) is trained on the same random batches, all of it and with adapters of rank 16. Both publish by
the object store after every step. Time is the median of `seconds_publish` over the steps after the
first; memory the most that the learner's process held, libraries included.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray

from actors.learner.train import train_grpo
from actors.pinned import Pinned
from actors.pool.client import PoolClient
from benchmarks.command import CONFIG
from benchmarks.process_monitor import ProcessMonitor, peak_memory
from pipelines.session.session import Session
from pipelines.training.learner_options import grpo_options
from stepwiser.config import load_config
from stepwiser.prompting.hub.folders import resolve_model
from stepwiser.training.experience import Experience, ExperienceBatch

ARMS = {"full": 0, "lora": 16}
"""Ranks."""
FULL, QUICK = 10, 4
"""Steps."""
SETTINGS = (
    "engine.dtype=float32",
    "engine.count=1",
    "engine.max_num_seqs=8",
    "learner.precision=float32",
    "learner.max_tokens_per_microbatch=2048",  # a step's samples
    "learner.workers=1",
    "cluster.object_store_mb=2560",
    "tracker=none",
)
SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 18}
VOCABULARY = 8192
PROMPT, RESPONSE = 96, 32


def measure_lora(out: Path, quick: bool) -> dict[str, Any]:
    """``lora_sync_ratio`` and ``lora_memory_ratio``, with what they are made of."""
    shutil.rmtree(out, ignore_errors=True)
    model = _make_model(out / "model")
    steps = QUICK if quick else FULL
    found = {name: _train(out / name, model, rank, steps) for name, rank in ARMS.items()}
    return {
        "lora_sync_ratio": found["lora"]["sync_s"] / found["full"]["sync_s"],
        "lora_memory_ratio": found["lora"]["memory_mb"] / found["full"]["memory_mb"],
        "lora": found,
    }


def _make_model(directory: Path) -> str:
    """The embedded model's tokenizer and kind of architecture, wider and deeper."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    base = resolve_model("embedded")
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    heads = {"num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64}
    config = AutoConfig.from_pretrained(base)
    config.update({**SIZES, **heads, "vocab_size": VOCABULARY, "max_position_embeddings": 512})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return str(directory)


def _train(folder: Path, model: str, rank: int, steps: int) -> dict[str, float]:
    own = (f"run_dir={folder}", f"learner.lora.rank={rank}", f"judge_model={model}")
    with Session(load_config(CONFIG, [*own, *SETTINGS])) as session:
        session.start(("train",))
        pool = session.pool(model, adapters=True)
        options = replace(
            grpo_options(session, "judge", model),
            steps=steps,
            minibatches=1,
            # Samples of no engine: there are no log-probs of it to hold against the learner's.
            logprob_tolerance=None,
            checkpoint_every=steps,
        )
        with ProcessMonitor(lambda: 0) as monitor:
            result = train_grpo(options, _Batches.remote(Pinned(pool.client())))
    later = result.metrics[1:]
    return {
        "sync_s": median(line["seconds_publish"] for line in later),
        "step_s": median(line["seconds_step"] for line in later),
        "memory_mb": peak_memory(monitor.moments)["RayTrainWorker"],
    }


@ray.remote(num_cpus=0)
class _Batches:
    """A collector of random samples, whose engines get the weights all the same."""

    def __init__(self, pool: Pinned[PoolClient]) -> None:
        self._pool = pool.get()

    async def next_batch(self, step: int) -> ExperienceBatch:
        rng = np.random.default_rng(step)
        prompts = [rng.integers(3, VOCABULARY, PROMPT) for _ in range(4)]
        return ExperienceBatch.from_experiences(
            [
                Experience(
                    prompt_ids=prompts[number // 4].tolist(),
                    response_ids=rng.integers(3, VOCABULARY, RESPONSE).tolist(),
                    advantage=float(rng.normal()),
                    reward=0.0,
                    group=number // 4,
                    weight_version=step,
                )
                for number in range(16)
            ]
        )

    async def publish(self, version: int, source: Any, timeout_s: float) -> dict[str, float]:
        await self._pool.update_weights(source, version, timeout_s)
        return {}
