"""What the annotation engine is worth: speed, tokens, live labels, nodes that come and go, scale.

    python -m benchmarks.annotation            about two hours on two cores
    python -m benchmarks.annotation --quick    within five minutes
    python -m benchmarks.annotation --only speed tokens

The parts are modules of their own (`annotation_speed`, `annotation_tokens`, `annotation_live`,
`annotation_elastic`, `annotation_scale`), each with an account of how it measures. All compare
arms of one run, so that figures are ratios. The last line is one JSON object; a part that is left
out (`--quick` leaves out `elastic`) has no figure there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stepwiser.config import load_config

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "embedded.yaml"
PARTS = ("speed", "tokens", "live", "elastic", "scale")
QUICK_POLICY = (
    "segment.problems=96",
    "segment.evaluation_problems=16",
    "segment.sft.steps=40",
)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    repeats: int
    speed_problems: int
    sequential_requests: int
    tape_problems: int
    shuffles: int
    seeds: int
    window_s: float
    elastic_problems: int
    chunks: int


FULL = Size(3, 256, 60, 48, 4, 3, 30.0, 640, 1_000_000)
QUICK = Size(1, 16, 8, 2, 1, 1, 0.0, 0, 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within five minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--out", default="runs/annotation", help="folder of the run directories")
    args = parser.parse_args()
    console = Console()
    out = Path(args.out) / ("quick" if args.quick else "full")
    size = QUICK if args.quick else FULL
    policy = _policy(out, args.quick)
    figures: dict[str, Any] = {}
    for part in args.only:
        if part == "elastic" and args.quick:
            continue  # three windows and two changes take longer than all else
        figures |= MEASURES[part](console, policy, out, size, args.quick)
    print(json.dumps(figures))


def _policy(out: Path, quick: bool) -> Path:
    """A run directory with a chunk-tuned policy, made once."""
    from pipelines.stages.runner import run_stages

    folder = out / "policy"
    if not (folder / "models" / "policy" / "config.json").is_file():
        overrides = QUICK_POLICY if quick else ()
        run_stages(load_config(CONFIG, [f"run_dir={folder}", *overrides]), ("segment",))
    return folder


def _fresh(policy: Path, folder: Path) -> str:
    """An empty run directory with that policy; what an earlier start left would be kept."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(policy / "models", folder / "models")
    return f"run_dir={folder}"


def _speed(console: Console, policy: Path, out: Path, size: Size, quick: bool) -> dict[str, Any]:
    from benchmarks.annotation.speed import measure_speed
    from pipelines.session.session import Session

    engines = f"engine.count={1 if quick else 2}"  # most of a quick run is engines that start
    overrides = [_fresh(policy, out / "speed"), "data.limit=100000", engines]
    with Session(load_config(CONFIG, overrides)) as session:
        session.start(["annotate"])
        found = measure_speed(session, size.repeats, size.speed_problems, size.sequential_requests)
    table = Table(title="Generated tokens/s, by repeat", title_justify="left")
    for name in found["rows"][0]:
        table.add_column(name, justify="right")
    for row in found["rows"]:
        table.add_row(*(f"{rate:,.0f}" for rate in row.values()))
    console.print(table)
    return {name: value for name, value in found.items() if name != "rows"}


def _tokens(console: Console, policy: Path, out: Path, size: Size, quick: bool) -> dict[str, Any]:
    from benchmarks.annotation.tokens import measure_tokens, summarize
    from pipelines.session.session import Session

    overrides = [
        _fresh(policy, out / "tokens"),
        f"data.limit={size.tape_problems}",
        f"engine.count={1 if quick else 2}",
    ]
    with Session(load_config(CONFIG, overrides)) as session:
        session.start(["annotate"])
        found = measure_tokens(session, size.tape_problems, size.shuffles)
    for mode, title in (
        ("followed", "Trajectories followed to their end"),
        ("ends", "Trajectories that end at the first value below annotate.stop_below"),
    ):
        table = Table(title=f"{title}: shares of fixed, M = 16", title_justify="left")
        for name in ("labels", "stopping", "tokens", "completions", "agrees", "label error"):
            table.add_column(name, justify="left" if name in ("labels", "stopping") else "right")
        for question, rows in found[mode].items():
            for name, row in rows.items():
                error = f"{row['error']:.4f} ± {row['error_se']:.4f}"
                cells = (f"{row[k]:.3f}" for k in ("tokens", "completions", "agreement"))
                table.add_row(question, name, *cells, error)
        console.print(table)
    return summarize(found)


def _live(console: Console, policy: Path, out: Path, size: Size, quick: bool) -> dict[str, Any]:
    from benchmarks.annotation.live import difference, measure_live

    for folder in out.glob("live-*"):
        shutil.rmtree(folder)
    for folder in out.glob("finished-*"):
        shutil.rmtree(folder)
    found = measure_live(policy, out, size.seeds, quick)
    figures = {"live_over_read": found["live_over_read"]}
    if not quick:
        gap, error = difference(found["rows"])
        figures |= {"live_f1_gap": gap, "live_f1_gap_se": error}
        table = Table(title="Live beside finished annotation", title_justify="left")
        for name in ("seed", "F1 finished", "F1 live", "rollouts finished", "rollouts live"):
            table.add_column(name, justify="right")
        for seed, row in enumerate(found["rows"]):
            f1 = (f"{row[f'{k}_f1']:.3f} ± {row[f'{k}_f1_se']:.3f}" for k in ("finished", "live"))
            made = (row["finished_rollouts"], row["live"]["rollouts_made"])
            table.add_row(str(seed), *f1, *(f"{count:,}" for count in made))
        console.print(table)
    return figures


def _elastic(console: Console, policy: Path, out: Path, size: Size, quick: bool) -> dict[str, Any]:
    from benchmarks.annotation.elastic import measure_elastic

    overrides = [_fresh(policy, out / "elastic")]
    figures, windows = measure_elastic(overrides, size.elastic_problems, size.window_s)
    table = Table(title="A node joins, and leaves", title_justify="left")
    for name in ("engines", "tokens/s", "engines' CPU time of a token, µs"):
        table.add_column(name, justify="right")
    for engines, window in zip(("1", "2", "1"), windows, strict=True):
        table.add_row(engines, f"{window['tokens_per_s']:,.0f}", f"{window['cpu_us']:,.0f}")
    console.print(table)
    return figures


def _scale(console: Console, policy: Path, out: Path, size: Size, quick: bool) -> dict[str, Any]:
    from benchmarks.annotation.scale import measure, print_table

    folder = out / "scale"
    shutil.rmtree(folder, ignore_errors=True)
    found = measure(folder, size.chunks, (), console)
    print_table(console, found)
    shutil.rmtree(folder, ignore_errors=True)  # tens of thousands of files that nobody reads
    names: Sequence[str] = ("scale_memory_ratio", "scale_chunks_per_s", "scale_cost_ratio")
    return {name: found[name] for name in names}


MEASURES = {"speed": _speed, "tokens": _tokens, "live": _live, "elastic": _elastic, "scale": _scale}

if __name__ == "__main__":
    main()
