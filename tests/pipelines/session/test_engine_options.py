"""What engines are told of the GPU that they share."""

from __future__ import annotations

import pytest

from benchmarks.command import CONFIG
from pipelines.session.engine_options import engine_options
from stepwiser.config import load_config


@pytest.mark.parametrize(
    ("overrides", "share"),
    [
        (["engine.gpus=0"], None),
        (["engine.gpus=1"], None),
        (["engine.gpus=0.25"], 0.225),
        (["engine.gpus=0.6"], 0.54),
        (["engine.gpus=0.25", "engine.gpu_memory_utilization=0.2"], 0.2),
        (["engine.gpus=1", "engine.gpu_memory_utilization=0.85"], 0.85),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_engines_that_share_a_gpu_share_its_memory(
    overrides: list[str], share: float | None
) -> None:
    options = engine_options(load_config(CONFIG, overrides), "anywhere")
    assert options.gpu_memory_utilization == pytest.approx(share)
