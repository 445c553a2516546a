"""A training whose last checkpoint is of its last step: started again, it only exports anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import ray

from actors.learner import GRPOTrainOptions, train_grpo
from actors.worker_group import WorkerGroup
from stepwiser.grpo import GRPOLossConfig
from stepwiser.schedule import LearningRate
from tests.actors.learning import ScriptedCollector, local_ray
from tests.tiny import make_tiny_model


@pytest.mark.slow
def test_a_kill_after_the_last_step_costs_no_training(tmp_path: Path) -> None:
    model = str(make_tiny_model(tmp_path / "model"))
    options = GRPOTrainOptions(
        group=WorkerGroup(
            name="judge",
            storage_path=str(tmp_path / "checkpoints"),
            max_tokens_per_microbatch=160,
            max_failures=0,
        ),
        model_dir=model,
        output_dir=str(tmp_path / "models" / "judge"),
        metrics_path=str(tmp_path / "metrics.jsonl"),
        steps=2,
        minibatches=2,
        learning_rate=LearningRate(1e-4),
        temperature=1.0,
        max_response_length=64,
        loss=GRPOLossConfig(),
    )
    with local_ray():
        first = train_grpo(options, ScriptedCollector.remote(model))
        trained = Path(first.model_dir, "model.safetensors").read_bytes()
        # As if killed while the last judge was written: nothing of it has its final name.
        shutil.rmtree(tmp_path / "models")
        collector = ScriptedCollector.remote(model)
        # The same metrics to the second at which each step ended: none was done again.
        assert train_grpo(options, collector) == first
        assert ray.get(collector.calls.remote()) == [("publish", 2)]
    assert Path(first.model_dir, "model.safetensors").read_bytes() == trained
