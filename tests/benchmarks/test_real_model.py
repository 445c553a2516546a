"""The measurement of a real model: what it reads of a run, and how seeds become one figure."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from benchmarks.real_model import JUDGES, QUICK, RECIPE, figures_of, summarize
from pipelines.evaluation.benchmark_table import OWN_LABELS
from stepwiser.annotation.statistics import Z95
from stepwiser.config import load_config
from stepwiser.run.store import RunStore


def _stages(values: dict[str, float]) -> dict[str, Any]:
    rows = [
        {
            "judge": JUDGES[name],
            "benchmark": benchmark,
            "value": value,
            "answered": value + 0.1 if name != "start" else None,
            "low": value - 0.1 * Z95,
            "high": value + 0.1 * Z95,
            "no_verdict": 0.25,
            "solutions": 40,
        }
        for name, value in values.items()
        for benchmark in ("processbench-gsm8k", OWN_LABELS)
    ]
    repeats = [
        {"rule": rule, "rollouts": size, "agreement": size / 10}
        for rule in ("abs_q", "rel_effective")
        for size in (4, 8)
    ]
    return {
        "evaluate": {"benchmarks": rows},
        "label": {"rule": "rel_effective", "repeats": repeats},
    }


def test_figures_of_a_run_and_of_several(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    first = figures_of(_stages({"start": 0.2, "warm": 0.5, "rl": 0.6, "classifier": 0.4}), store)
    assert first["judges"]["rl"]["se"] == pytest.approx(0.1)
    assert first["judges"]["start"]["verdict_rate"] == 0.75
    assert (first["repeat"], first["kills"]) == (0.8, 0)
    second = figures_of(_stages({"start": 0.2, "warm": 0.5, "rl": 0.9, "classifier": 0.4}), store)
    found = summarize([first, second])
    assert found["real_f1_rl"] == pytest.approx(0.75)
    assert found["real_f1_rl_se"] == pytest.approx(0.15), "what seeds differ, which is more"
    assert found["real_answered_rl"] == pytest.approx(0.85) and found["real_answered_start"] is None
    alone = summarize([first])
    assert alone["real_f1_rl_se"] == pytest.approx(0.1)
    assert alone["real_gain_se"] == pytest.approx(0.1 * sqrt(2))


def test_the_recipe_takes_what_quick_changes() -> None:
    config = load_config(RECIPE, list(QUICK))
    assert config.train.warm_start and config.learner.lora.rank and config.annotate.repeat_share
    assert load_config(RECIPE.with_name("real-0.5b-gpu.yaml")).train.colocated
