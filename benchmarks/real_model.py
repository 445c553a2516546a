"""Does a real language model learn to judge real mathematics? configs/real-0.5b-cpu.yaml, by seeds.

    python -m benchmarks.real_model --model DIR --data DIR           two seeds, some hours each
    python -m benchmarks.real_model --model DIR --data DIR --quick   one small seed, an hour

``--model`` is a folder with an instruction-tuned model of about half a billion parameters, and
``--data`` one with gsm8k/train.jsonl, gsm8k/test.jsonl and processbench/gsm8k.json. Each seed
annotates problems of its own, labels them, trains the judge (warm start, then GRPO) and the
discriminative baseline, and scores all of them on held-out labelled chunks and on ProcessBench.
Finished stages are kept, and a stage that was interrupted goes on: the same command continues.

The last line is one JSON object. real_f1_start, real_f1_warm, real_f1_rl, real_f1_classifier: macro
F1 over held-out labelled chunks of the model that the judge starts as (same prompt), of the warm
start, of the judge, and of the discriminative baseline, means over seeds; a chunk without a verdict
is a miss of its class. real_answered_start and so on: over answers with a verdict alone.
real_f1_rl_se and real_gain_se: standard errors of the judge's F1 and of its gain over the start (of
problems, or of seeds where that is more); verdict_rate_start, verdict_rate_warm, verdict_rate_rl:
share of answers with a verdict; label_repeat_agreement: share of chunks that two annotations label
alike; oom_kills: processes that the kernel or Ray killed for memory; train_vs_torch,
lora_sync_ratio and lora_memory_ratio: of `python -m benchmarks.training`, with this model where it
takes one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import nan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console

from benchmarks.command import CONFIG, arguments
from pipelines.evaluation.benchmark_table import OWN_LABELS
from pipelines.monitoring.formatting import known, number, titled_table
from pipelines.stages.runner import run_stages
from stepwiser.annotation.statistics import Z95
from stepwiser.config import load_config
from stepwiser.run.store import RunStore

RECIPE = CONFIG.with_name("real-0.5b-cpu.yaml")
STAGES = ("annotate", "label", "train", "evaluate", "report")
QUICK = (
    "data.limit=24",
    "annotate.rollouts=4",
    "label.heldout_share=0.4",
    "rejection.prompts=24",
    "train.steps=3",
    "discriminative.sft.epochs=1",
    "evaluate.limit=8",
)
JUDGES = {
    "start": "start",
    "warm": "warm start",
    "rl": "judge",
    "classifier": "judge-discriminative",
}


def main() -> None:
    parser = arguments(__doc__, "one small seed", "runs/real-model")
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--data", required=True, help="folder of gsm8k/ and processbench/")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="further key=value overrides")
    args = parser.parse_args()
    out = Path(args.out).absolute() / ("quick" if args.quick else "full")
    model, data = Path(args.model).absolute(), Path(args.data).absolute()
    seeds = []
    for seed in range(1 if args.quick else args.seeds):
        own = [*(QUICK if args.quick else ()), *args.overrides]
        seeds.append(run_seed(seed, out / f"seed-{seed}", model, data, own))
    print_table(Console(), seeds)
    print(json.dumps(summarize(seeds) | measure_training(out, args.quick, str(model))))


def run_seed(
    seed: int, folder: Path, model: Path, data: Path, overrides: Sequence[str]
) -> dict[str, Any]:
    """One run, or the rest of it; returns its figures."""
    config = load_config(
        RECIPE,
        [
            f"run_dir={folder}",
            f"policy_model={model}",
            f"data.source={data / 'gsm8k/train.jsonl'}",
            f"evaluation_data.source={data / 'gsm8k/test.jsonl'}",
            f"evaluate.source={data / 'processbench/gsm8k.json'}",
            f"seed={seed}",
            f"data.seed={seed}",
            *overrides,
        ],
    )
    return figures_of(run_stages(config, STAGES), RunStore(folder))


def figures_of(stages: dict[str, Any], store: RunStore) -> dict[str, Any]:
    """By judge: F1, its standard error, and the share of answers with a verdict; and what of the
    labels and of memory."""
    rows = {
        row["judge"]: row
        for row in stages["evaluate"]["benchmarks"]
        if row["benchmark"] == OWN_LABELS
    }
    figures: dict[str, Any] = {"judges": {}}
    for name, judge in JUDGES.items():
        row = rows[judge]
        bounded = row["low"] is not None and row["high"] is not None
        figures["judges"][name] = {
            "f1": row["value"],
            "answered": row["answered"],
            "se": (row["high"] - row["low"]) / (2 * Z95) if bounded else nan,
            "verdict_rate": 1 - row["no_verdict"],
            "solutions": row["solutions"],
        }
    own = [row for row in stages["label"]["repeats"] if row["rule"] == stages["label"]["rule"]]
    figures["repeat"] = own[-1]["agreement"] if own else None
    figures["kills"] = len(store.read_kills())
    return figures


def summarize(seeds: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Means over seeds, and the standard errors."""
    found: dict[str, float | None] = {}
    for name in JUDGES:
        rows = [seed["judges"][name] for seed in seeds]
        found[f"real_f1_{name}"] = fmean(row["f1"] for row in rows)
        answered = [row["answered"] for row in rows if row["answered"] is not None]
        found[f"real_answered_{name}"] = fmean(answered) if answered else None
        if name != "classifier":
            found[f"verdict_rate_{name}"] = fmean(row["verdict_rate"] for row in rows)
    judged = [seed["judges"] for seed in seeds]
    found["real_f1_rl_se"] = _error(
        [j["rl"]["f1"] for j in judged], [j["rl"]["se"] for j in judged]
    )
    # As if both were independent, which answers about the same chunks are not: an upper bound.
    found["real_gain_se"] = _error(
        [j["rl"]["f1"] - j["start"]["f1"] for j in judged],
        [sqrt(j["rl"]["se"] ** 2 + j["start"]["se"] ** 2) for j in judged],
    )
    repeats = [seed["repeat"] for seed in seeds if seed["repeat"] is not None]
    found["label_repeat_agreement"] = fmean(repeats) if repeats else None
    found["oom_kills"] = sum(seed["kills"] for seed in seeds)
    return found


def _error(values: Sequence[float], errors: Sequence[float]) -> float:
    """Of the mean over seeds: by problems, or by what seeds differ where that is more."""
    within = sqrt(sum(error**2 for error in errors)) / len(errors)
    spread = stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return max(within, spread)


def measure_training(out: Path, quick: bool, model: str) -> dict[str, float]:
    """What the learner is worth; kept, since it takes half an hour."""
    from benchmarks.training.lora import measure_lora
    from benchmarks.training.plain_torch import measure_torch

    file = out / "training.json"
    if not file.is_file():
        found = measure_torch(out / "torch", quick, model) | measure_lora(out / "lora", quick)
        keys = ("train_vs_torch", "lora_sync_ratio", "lora_memory_ratio")
        file.write_text(json.dumps({key: found[key] for key in keys}))
    figures: dict[str, float] = json.loads(file.read_text())
    return figures


def print_table(console: Console, seeds: Sequence[dict[str, Any]]) -> None:
    table = titled_table("Held-out labelled chunks", "judge", "F1 by seed", "with a verdict")
    for name, judge in JUDGES.items():
        rows = [seed["judges"][name] for seed in seeds]
        table.add_row(
            judge,
            "  ".join(number(row["f1"]) for row in rows),
            "  ".join(known(row["verdict_rate"], "{:.0%}") for row in rows),
        )
    console.print(table)


if __name__ == "__main__":
    main()
