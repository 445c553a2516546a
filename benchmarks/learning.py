"""Does the judge learn, and does it help? The whole method, the judge over several seeds.

    python -m benchmarks.learning                  three seeds, about 45 minutes on two cores
    python -m benchmarks.learning --quick          one seed of the quickstart's size
    python -m benchmarks.learning --fresh-labels   every seed annotates problems of its own

Every seed trains both judges anew (order of prompts, samples, initial batches), is scored on fresh
solutions of its own and searches solutions of fresh problems. The first seed also segments,
annotates, selects and fine-tunes; the others read its labels, unless they are to be fresh. Finished
stages are kept, so an interrupted benchmark goes on. The last line is one JSON object; the figures
behind it are in the run directories.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from math import isnan, sqrt
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.command import CONFIG, arguments
from pipelines.monitoring.formatting import plus_minus, titled_table
from stepwiser.config import load_config

TRAINING = ("label", "train", "evaluate", "solve")
USE = ("select", "finetune", "report")
STAGES = ("segment", "annotate", *TRAINING, *USE)
SHARED = ("models/policy", "trajectories", "values", "units")
"""What later seeds take over from the first."""
FULL = (
    "data.limit=640",
    "train.steps=100",
    "evaluate.wrong=200",
    "evaluate.right=200",
    "solve.problems=500",
    "select.problems=400",
    "finetune.sft.steps=60",
    "finetune.evaluation_problems=500",
)


def main() -> None:
    parser = arguments(__doc__, "one seed, quickstart's size", "runs/learning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fresh-labels", action="store_true", help="annotate for every seed")
    parser.add_argument("overrides", nargs="*", help="further key=value overrides")
    args = parser.parse_args()
    console = Console()
    count = 1 if args.quick else args.seeds
    results = [
        run_seed(seed, args.out, args.quick, args.fresh_labels, args.overrides)
        for seed in range(count)
    ]
    print_table(console, results)
    print(json.dumps(summarize(results)))


def run_seed(
    seed: int, out: str, quick: bool, fresh_labels: bool, overrides: Sequence[str]
) -> dict[str, float]:
    """One seed; returns its figures and their standard errors."""
    from pipelines.stages.runner import run_stages

    folder = Path(out)
    name = "quick" if quick else "seed"
    shares = seed > 0 and not fresh_labels
    config = load_config(
        CONFIG,
        [
            *(() if quick else FULL),
            f"seed={seed}",
            f"data.seed={1 if shares else 1000 * seed + 1}",
            f"evaluation_data.seed={1_000_003 + 1000 * seed}",
            f"run_dir={folder / f'{name}-{seed}'}",
            *overrides,
        ],
    )
    if shares:
        for part in SHARED:
            shutil.copytree(
                folder / f"{name}-0" / part, folder / f"{name}-{seed}" / part, dirs_exist_ok=True
            )
    return figures_of(run_stages(config, TRAINING if shares else STAGES))


def figures_of(stages: dict[str, Any]) -> dict[str, float]:
    """The figures of one run: `name` and `name_se`."""
    judges = stages["evaluate"]["judges"]
    rows = {
        name: (
            judges[key]["single"]["official"]["f1"],
            judges[key]["single"]["official"]["f1_standard_error"],
        )
        for name, key in (
            ("rl_f1", "judge"),
            ("warm_f1", "start"),
            ("forced_f1", "start, forced"),
            ("disc_f1", "judge-discriminative"),
        )
    }
    rows["rl_majority_f1"] = (
        judges["judge"]["majority"]["official"]["f1"],
        judges["judge"]["majority"]["official"]["f1_standard_error"],
    )
    rows |= _search(stages["solve"])
    if "finetune" in stages:
        rows |= _selection(stages["finetune"])
    figures: dict[str, float] = {}
    for name, (value, error) in rows.items():
        figures[name] = float(value)
        # F1 of two zero accuracies has no derivative; then nothing is known of its error.
        figures[f"{name}_se"] = float("nan") if error is None else float(error)
    rules = {row["rule"]: row for row in stages["label"]["rules"]}
    figures["label_agreement"] = rules[stages["label"]["rule"]]["oracle_agreement"]
    if "segment" in stages:
        # The base's own, and that of the policy once it writes in chunks.
        for name, counts in (
            ("pass_at_1", stages["segment"]),
            ("policy_pass_at_1", stages["annotate"]["counts"]),
        ):
            figures[name] = counts["right_responses"] / counts["responses"]
    return figures


def _search(solve: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Chunk-reset with each judge, what it is measured against, and paired gains."""
    search = solve["search"]
    rows = {
        "plain_acc": _pair(solve["plain"]),
        "reset_acc": _pair(search["judge"]),
        "majority_acc": _pair(search["judge"]["majority_at_cost"]),
        "reset_disc_acc": _pair(search["judge-discriminative"]),
        "reset_start_acc": _pair(search["start"]),
    }
    for name, key in (
        ("reset_over_plain", "judge - plain"),
        ("reset_over_majority", "judge - majority"),
        ("reset_over_disc", "judge - judge-discriminative"),
    ):
        row = solve["differences"][key]
        rows[name] = (row["mean"], row["se"])
    return rows


def _selection(finetuned: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Accuracy after fine-tuning on each pick, and paired gains over random ones."""
    rows = {f"pick_{name}": (row["mean"], row["se"]) for name, row in finetuned["accuracy"].items()}
    for name, key in (
        ("pick_gain", "judge - random"),
        ("pick_gain_right", "judge_right - random_right"),
    ):
        row = finetuned["differences"][key]
        rows[name] = (row["mean"], row["se"])
    return rows


def _pair(row: dict[str, float]) -> tuple[float, float]:
    return row["accuracy"], row["accuracy_se"]


def summarize(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over seeds; the standard error is the larger of what items and what seeds say.

    With three seeds the spread between them is itself uncertain, so it may only widen the error
    that follows from the number of items.
    """
    figures: dict[str, float] = {"seeds": len(results)}
    for name in results[0]:
        if name.endswith("_se"):
            continue
        rows = [row for row in results if name in row]
        values = [row[name] for row in rows]
        mean = sum(values) / len(values)
        figures[name] = mean
        if f"{name}_se" in results[0]:
            errors = [e for row in rows if not isnan(e := row[f"{name}_se"])]
            within = sqrt(sum(e * e for e in errors)) / len(errors) if errors else 0.0
            count = len(values)
            spread = sum((v - mean) ** 2 for v in values) / (count - 1) if count > 1 else 0.0
            figures[f"{name}_se"] = max(within, sqrt(spread / count))
    return figures


def print_table(console: Console, results: Sequence[dict[str, float]]) -> None:
    figures = summarize(results)
    table = titled_table(f"{len(results)} seeds", "figure", "mean ± standard error", "seeds")
    for name in results[0]:
        if not name.endswith("_se"):
            text = plus_minus(figures[name], figures.get(f"{name}_se"))
            table.add_row(
                name, text, "  ".join(f"{row[name]:.3f}" for row in results if name in row)
            )
    console.print(table)


if __name__ == "__main__":
    main()
