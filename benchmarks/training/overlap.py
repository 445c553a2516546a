"""What sampling ahead of the learner is worth: staleness 1 beside staleness 0.

Both train the packaged base model on the same oracle-labelled prompts with the stage `train`, one
after the other, the first one in turn. With staleness 1 the engines sample the next step while the
learner works on this one. Where both have cores of their own that hides the shorter of the two; on
two cores, where engines and learner take turns on the same ones anyway, what is left to gain is
what neither can use: the tails of a batch, and the waits of the ranks for each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.training.trl import PROMPTS, final_reward, oracle_prompts, prepare, run_ours

SEEDS, STEPS, PROMPTS_PER_STEP = 2, 30, 128
QUICK_STEPS, QUICK_PROMPTS = 6, 32
WARM_UP = 2
"""Steps at the start that are not measured."""
BOUNDS = (0, 1)


def measure_overlap(out: Path, quick: bool) -> dict[str, float]:
    """Compare the two bounds.

    Returns ``overlap_gain`` (median over seeds of samples/s with staleness 1 over those with 0),
    ``engine_idle`` and ``learner_idle`` (mean shares of a step with staleness 1), the same with
    ``_on_policy`` behind the name for staleness 0, and ``overlap_reward`` and
    ``overlap_reward_on_policy``, the mean reward of the last fifth of the steps, each with ``_se``.
    """
    seeds = 1 if quick else SEEDS
    steps = QUICK_STEPS if quick else STEPS
    per_step = QUICK_PROMPTS if quick else PROMPTS_PER_STEP
    prompts = oracle_prompts(PROMPTS, seed=3)
    curves: dict[int, list[list[dict[str, Any]]]] = {bound: [] for bound in BOUNDS}
    for seed in range(seeds):
        for bound in BOUNDS if seed % 2 == 0 else reversed(BOUNDS):
            config = prepare(
                out / f"staleness-{bound}-seed-{seed}",
                prompts,
                [
                    f"seed={seed}",
                    f"train.staleness={bound}",
                    f"train.steps={steps}",
                    f"train.prompts_per_step={per_step}",
                    f"train.minibatch_prompts={per_step // 2}",
                    f"train.checkpoint_every={steps}",
                ],
            )
            curves[bound].append(run_ours(config)[1])
    return summarize(curves)


def summarize(curves: dict[int, list[list[dict[str, Any]]]]) -> dict[str, float]:
    """Figures of the curves by bound, equally many seeds of each."""
    rates = {bound: [samples_per_s(rows) for rows in found] for bound, found in curves.items()}
    figures = {
        "overlap_gain": statistics.median(
            ahead / turns for turns, ahead in zip(rates[0], rates[1], strict=True)
        )
    }
    for bound, suffix in ((1, ""), (0, "_on_policy")):
        for name in ("engine_idle", "learner_idle"):
            figures[name + suffix] = statistics.mean(
                row[name] for rows in curves[bound] for row in rows[WARM_UP:] if name in row
            )
        mean, error = final_reward([[row["reward"] for row in rows] for rows in curves[bound]])
        figures["overlap_reward" + suffix] = mean
        figures["overlap_reward" + suffix + "_se"] = error
    return figures


def samples_per_s(rows: Sequence[dict[str, Any]]) -> float:
    """Samples of the steps after the warm-up over the time that they took."""
    measured = rows[WARM_UP:]
    return sum(row["samples"] for row in measured) / (
        measured[-1]["time"] - rows[WARM_UP - 1]["time"]
    )
