"""Options of a small training on a real worker group."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.learner.train import GRPOTrainOptions
from actors.learner.worker_group import WorkerGroup
from stepwiser.training.grpo import GRPOLossConfig
from stepwiser.training.schedule import LearningRate


def train_options(
    folder: Path, model: str, name: str, group: dict[str, Any] | None = None, **changes: Any
) -> GRPOTrainOptions:
    """Two ranks that train on a `ScriptedCollector`'s batches, with their files in ``folder``."""
    defaults = {"num_workers": 2, "max_failures": 0, "max_tokens_per_microbatch": 160}
    storage = str(folder / "checkpoints")
    options = GRPOTrainOptions(
        group=WorkerGroup(name=name, storage_path=storage, **(defaults | (group or {}))),
        model_dir=model,
        output_dir=str(folder / "models" / name),
        metrics_path=str(folder / "metrics.jsonl"),
        steps=4,
        minibatches=2,
        learning_rate=LearningRate(1e-4),
        temperature=1.0,
        max_response_length=64,
        loss=GRPOLossConfig(),
        checkpoint_every=1,
    )
    return replace(options, **changes)


def lone_worker(
    directory: str,
    steps: int,
    stage: int,
    precision: str = "float32",
    kl_coefficient: float = 0.0,
    lora: Any = None,
    adapter: str | None = None,
) -> tuple[Any, Any]:
    """A rank that trains ``directory``/model without Ray, and the loop that it runs."""
    from actors.learner.deepspeed_worker import DeepSpeedWorker
    from actors.learner.grpo_loop import GRPOLoop
    from actors.learner.worker_group import engine_config

    options = train_options(
        Path(directory),
        f"{directory}/model",
        "lone",
        {"zero_stage": stage, "precision": precision, "lora": lora},
        steps=steps,
        loss=GRPOLossConfig(kl_coefficient=kl_coefficient),
    )
    worker = DeepSpeedWorker(engine_config(options.group, options.model_dir, 1.0, 0.0, adapter))
    return worker, GRPOLoop(options, None, worker)
