"""A training whose last checkpoint is of its last step: started again, it only exports anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import ray

from actors.learner.train import train_grpo
from tests.support.scripted_collector import ScriptedCollector
from tests.support.tiny import make_tiny_model
from tests.support.train_options import train_options


@pytest.mark.slow
def test_a_kill_after_the_last_step_costs_no_training(ray_local: None, tmp_path: Path) -> None:
    model = str(make_tiny_model(tmp_path / "model"))
    options = train_options(tmp_path, model, "judge", {"num_workers": 1}, steps=2)
    first = train_grpo(options, ScriptedCollector.remote(model))
    trained = Path(first.model_dir, "model.safetensors").read_bytes()
    # As if killed while the last judge was written: nothing of it has its final name.
    shutil.rmtree(tmp_path / "models")
    collector = ScriptedCollector.remote(model)
    # The same metrics to the second at which each step ended: none was done again.
    assert train_grpo(options, collector) == first
    assert ray.get(collector.calls.remote()) == [("publish", 2)]
    assert Path(first.model_dir, "model.safetensors").read_bytes() == trained
