"""What the trainer is worth: speed against TRL, agreement of engine and learner, overlap, memory.

    python -m benchmarks.training            about two hours on two cores
    python -m benchmarks.training --quick    within five minutes
    python -m benchmarks.training --only trl memory

The parts are modules of their own (`training_trl`, `training_overlap`, `training_memory`), each
with an account of how it measures. The last line is one JSON object with `samples_vs_trl`,
`logprob_gap`, `overlap_gain`, `engine_idle`, `learner_idle` and `memory_growth`, and what belongs
to them; a part that is left out has no figure there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PARTS = ("trl", "overlap", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within five minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--out", default="runs/training", help="folder of the run directories")
    args = parser.parse_args()
    console = Console()
    out = Path(args.out).absolute() / ("quick" if args.quick else "full")
    figures: dict[str, Any] = {}
    for part in args.only:
        figures |= MEASURES[part](console, out, args.quick)
    print(json.dumps(figures))


def _trl(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.training.trl import FULL, QUICK, measure_trl

    found = measure_trl(out, QUICK if quick else FULL)
    tried = found.pop("tried")
    seconds = found.pop("seconds")
    if tried:
        _print(console, "Seconds of a step of TRL, by processes × micro-batch", tried)
    _print(console, "Seconds of a step of ours", seconds)
    console.print(
        f"final reward {found['reward']:.3f} ± {found['reward_se']:.3f}, "
        f"TRL {found['reward_trl']:.3f} ± {found['reward_trl_se']:.3f}"
    )
    return found


def _overlap(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.training.overlap import measure_overlap

    return measure_overlap(out / "overlap", quick)


def _memory(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.training.memory import measure_memory

    found = measure_memory(out, quick)
    table = Table(title="Memory", title_justify="left")
    for name in ("process", "most, MB", "last / first fifth after start-up"):
        table.add_column(name, justify="left" if name == "process" else "right")
    for kind in ("growth", "growth_ray"):
        for role, ratio in found[kind].items():
            table.add_row(role, f"{found['memory_mb'][role]:.0f}", f"{ratio:.3f}")
        table.add_section()
    console.print(table)
    return {"memory_growth": found["memory_growth"]}


def _print(console: Console, title: str, rows: Mapping[str, float]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)


MEASURES = {"trl": _trl, "overlap": _overlap, "memory": _memory}

if __name__ == "__main__":
    main()
