"""A judge trained on labels as they come, beside one trained on a finished annotation.

Both read as many prompts in as many steps, start from the same model and are scored on the same
solutions. What differs: the finished annotation holds a fixed number of problems, of whose labels
balancing drops the larger part, and is read several times; the live one makes what is read.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.command import CONFIG
from pipelines.stages.runner import run_stages
from stepwiser.config import load_config

LIVE = (
    "train.live=true",
    "annotate.min_engines=1",
    # An engine beside those of the training: all of them take turns on the cores.
    "cluster.cpus=5",
    # More than is needed, so that the steps decide how much is annotated.
    "data.limit=1280",
)
BOTH = (
    "discriminative.enabled=false",
    "evaluate.votes=1",
    "evaluate.wrong=200",
    "evaluate.right=200",
    "evaluate.calibration_trajectories=0",
    "evaluate.forced_prefix=''",
    "evaluate.faithfulness=0",
    "evaluate.beyond=0",
    "train.evaluate_every=null",
)
QUICK = (
    "engine.count=1",
    "learner.workers=1",
    "train.steps=3",
    "train.prompts_per_step=32",
    "train.minibatch_prompts=16",
)


def measure_live(policy: Path, out: Path, seeds: int, quick: bool) -> dict[str, Any]:
    """Train both ways over the seeds, with the chunk-tuned policy of a run directory.

    Returns ``live_over_read``, the rollouts made for each that some step has read (mean over the
    seeds), and the rows of the seeds; with ``quick`` only the live training of one seed.
    """
    if quick:
        results = _run(policy, out / "live-quick", ("train",), (*LIVE, *BOTH, *QUICK))
        live = results["train"]["live"]
        return {"live_over_read": live["made_over_read"], "rows": [{"live": live}]}
    rows = [_seed(policy, out, seed) for seed in range(seeds)]
    return {"live_over_read": mean(row["live"]["made_over_read"] for row in rows), "rows": rows}


def _seed(policy: Path, out: Path, seed: int) -> dict[str, Any]:
    shared = (
        *BOTH,
        f"seed={seed}",
        f"data.seed={1000 * seed + 1}",
        f"evaluation_data.seed={1_000_003 + 1000 * seed}",
    )
    finished = _run(
        policy, out / f"finished-{seed}", ("annotate", "label", "train", "evaluate"), shared
    )
    live = _run(policy, out / f"live-{seed}", ("train", "evaluate"), (*shared, *LIVE))
    row: dict[str, Any] = {"live": live["train"]["live"]}
    row["finished_rollouts"] = finished["annotate"]["counts"]["rollouts"]
    row["finished_prompts"] = finished["train"]["prompts"]["train"]
    for name, results in (("finished", finished), ("live", live)):
        score = results["evaluate"]["judges"]["judge"]["single"]["official"]
        row[f"{name}_f1"] = score["f1"]
        row[f"{name}_f1_se"] = score["f1_standard_error"]
    return row


def difference(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Mean F1 of live less finished, and its standard error: of items or of seeds, the larger."""
    gaps = [row["live_f1"] - row["finished_f1"] for row in rows]
    items = sqrt(sum(row["live_f1_se"] ** 2 + row["finished_f1_se"] ** 2 for row in rows))
    seeds = stdev(gaps) / sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return mean(gaps), max(items / len(rows), seeds)


def _run(
    policy: Path, folder: Path, stages: Sequence[str], overrides: Sequence[str]
) -> dict[str, Any]:
    shutil.copytree(policy / "models" / "policy", folder / "models" / "policy", dirs_exist_ok=True)
    return run_stages(load_config(CONFIG, [f"run_dir={folder}", *overrides]), stages)
