"""What the trainer is worth: beside TRL and plain PyTorch, agreement, overlap, memory, LoRA, loss.

    python -m benchmarks.training            about two hours on two cores
    python -m benchmarks.training --quick    within five minutes
    python -m benchmarks.training --only trl memory
    python -m benchmarks.training --only torch --model FOLDER

The parts are modules of their own (`trl`, `overlap`, `memory`, `lora`, `torch` in `plain_torch`,
`loss`), each with an account of how it measures. The last line is one JSON object with
`samples_vs_trl`, `logprob_gap`, `overlap_gain`, `engine_idle`, `learner_idle`, `memory_growth`,
`lora_sync_ratio`, `lora_memory_ratio`, `train_vs_torch` and `loss_memory_ratio`, and what goes with
them; a part that is left out has no figure there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.command import measure_parts
from pipelines.monitoring.formatting import facts_table, plus_minus, titled_table


def _trl(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.training.trl import FULL, QUICK, measure_trl

    found = measure_trl(out, QUICK if quick else FULL)
    tried = found.pop("tried")
    seconds = found.pop("seconds")
    if tried:
        console.print(_seconds("Seconds of a step of TRL, by processes × micro-batch", tried))
    console.print(_seconds("Seconds of a step of ours", seconds))
    console.print(
        f"final reward {plus_minus(found['reward'], found['reward_se'])}, "
        f"TRL {plus_minus(found['reward_trl'], found['reward_trl_se'])}"
    )
    return found


def _overlap(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.training.overlap import measure_overlap

    return measure_overlap(out / "overlap", quick)


def _memory(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.training.memory import measure_memory

    found = measure_memory(out, quick)
    columns = ("process", "most, MB", "last / first fifth after start-up")
    table = titled_table("Memory", *columns)
    for kind in ("growth", "growth_ray"):
        for role, ratio in found[kind].items():
            table.add_row(role, f"{found['memory_mb'][role]:.0f}", f"{ratio:.3f}")
        table.add_section()
    console.print(table)
    return {"memory_growth": found["memory_growth"]}


def _lora(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.training.lora import measure_lora

    found = measure_lora(out / "lora", quick)
    columns = ("trained", "publication, s", "step, s", "learner, MB at most")
    table = titled_table("LoRA", *columns)
    for name, arm in found["lora"].items():
        table.add_row(
            name, f"{arm['sync_s']:.3f}", f"{arm['step_s']:.2f}", f"{arm['memory_mb']:.0f}"
        )
    console.print(table)
    return found


def _torch(console: Console, out: Path, quick: bool, model: str | None) -> dict[str, Any]:
    from benchmarks.training.plain_torch import measure_torch

    found = measure_torch(out / "torch", quick, model)
    table = titled_table("Training", "arm", "tokens/s", "tokens/CPU s", "memory, MB at most")
    for name, arm in found["torch_arms"].items():
        table.add_row(
            name,
            f"{arm['tokens_per_s']:.0f}",
            f"{arm['tokens_per_cpu_s']:.0f}",
            f"{arm['peak_mb']:.0f}",
        )
    console.print(table)
    return found


def _loss(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.training.loss import TOKENS, measure_loss

    # Whole logits of all take 10 GB.
    return measure_loss(256 if quick else TOKENS)


def _seconds(title: str, rows: Mapping[str, float]) -> Table:
    return facts_table(((name, f"{value:.2f}") for name, value in rows.items()), title)


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "trl": _trl,
    "overlap": _overlap,
    "memory": _memory,
    "lora": _lora,
    "torch": _torch,
    "loss": _loss,
}
OPTIONS = {
    "torch": {"model": "folder of the model that `torch` trains; default a small random one"}
}

if __name__ == "__main__":
    measure_parts(__doc__, MEASURES, "runs/training", OPTIONS)
