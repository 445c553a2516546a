"""What annotation is worth: speed, tokens, live labels, nodes that come and go, scale, storage.

    python -m benchmarks.annotation            about two hours on two cores
    python -m benchmarks.annotation --quick    within five minutes
    python -m benchmarks.annotation --only speed tokens

The parts are modules of their own (`speed`, `tokens`, `live`, `elastic`, `scale`, `storage`), each
with an account of how it measures. All compare arms of one run, so that figures are ratios. The
last line is one JSON object; a part that is left out (`--quick` leaves out `elastic`) has no figure
there.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.command import CONFIG, measure_parts
from pipelines.monitoring.formatting import plus_minus, titled_table
from stepwiser.config import load_config

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


def _policy(out: Path, quick: bool) -> Path:
    """A run directory with a chunk-tuned policy, made once."""
    from pipelines.stages.runner import run_stages

    folder = out / "policy"
    if not (folder / "models" / "policy" / "config.json").is_file():
        overrides = QUICK_POLICY if quick else ()
        run_stages(load_config(CONFIG, [f"run_dir={folder}", *overrides]), ("segment",))
    return folder


def _fresh(out: Path, quick: bool, name: str) -> str:
    """An empty run directory with that policy; what an earlier start left would be kept."""
    policy, folder = _policy(out, quick), out / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(policy / "models", folder / "models")
    return f"run_dir={folder}"


def _speed(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.annotation.speed import measure_speed
    from pipelines.session.session import Session

    size = QUICK if quick else FULL
    engines = f"engine.count={1 if quick else 2}"  # most of a quick run is engines that start
    overrides = [_fresh(out, quick, "speed"), "data.limit=100000", engines]
    with Session(load_config(CONFIG, overrides)) as session:
        session.start(["annotate"])
        found = measure_speed(session, size.repeats, size.speed_problems, size.sequential_requests)
    table = titled_table("Generated tokens/s, by repeat", *found["rows"][0], left=())
    for row in found["rows"]:
        table.add_row(*(f"{rate:,.0f}" for rate in row.values()))
    console.print(table)
    return {name: value for name, value in found.items() if name != "rows"}


def _tokens(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.annotation.tokens import measure_tokens, summarize
    from pipelines.session.session import Session

    size = QUICK if quick else FULL
    overrides = [
        _fresh(out, quick, "tokens"),
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
        table = titled_table(
            f"{title}: shares of fixed, M = 16",
            *("labels", "stopping", "tokens", "completions", "agrees", "label error"),
            left=("labels", "stopping"),
        )
        for question, rows in found[mode].items():
            for name, row in rows.items():
                error = f"{row['error']:.4f} ± {row['error_se']:.4f}"
                cells = (f"{row[k]:.3f}" for k in ("tokens", "completions", "agreement"))
                table.add_row(question, name, *cells, error)
        console.print(table)
    return summarize(found)


def _live(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.annotation.live import difference, measure_live

    for folder in out.glob("live-*"):
        shutil.rmtree(folder)
    for folder in out.glob("finished-*"):
        shutil.rmtree(folder)
    found = measure_live(_policy(out, quick), out, (QUICK if quick else FULL).seeds, quick)
    figures = {"live_over_read": found["live_over_read"]}
    if not quick:
        gap, error = difference(found["rows"])
        figures |= {"live_f1_gap": gap, "live_f1_gap_se": error}
        columns = ("seed", "F1 finished", "F1 live", "rollouts finished", "rollouts live")
        table = titled_table("Live beside finished annotation", *columns, left=())
        for seed, row in enumerate(found["rows"]):
            f1 = (plus_minus(row[f"{k}_f1"], row[f"{k}_f1_se"]) for k in ("finished", "live"))
            made = (row["finished_rollouts"], row["live"]["rollouts_made"])
            table.add_row(str(seed), *f1, *(f"{count:,}" for count in made))
        console.print(table)
    return figures


def _elastic(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.annotation.elastic import measure_elastic

    if quick:
        return {}  # three windows and two changes take longer than all else
    overrides = [_fresh(out, quick, "elastic")]
    figures, windows = measure_elastic(overrides, FULL.elastic_problems, FULL.window_s)
    columns = ("engines", "tokens/s", "engines' CPU time of a token, µs")
    table = titled_table("A node joins, and leaves", *columns, left=())
    for engines, window in zip(("1", "2", "1"), windows, strict=True):
        table.add_row(engines, f"{window['tokens_per_s']:,.0f}", f"{window['cpu_us']:,.0f}")
    console.print(table)
    return figures


def _scale(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.annotation.scale import measure, print_table

    folder = out / "scale"
    shutil.rmtree(folder, ignore_errors=True)
    found = measure(folder, (QUICK if quick else FULL).chunks, (), console)
    print_table(console, found)
    shutil.rmtree(folder, ignore_errors=True)  # tens of thousands of files that nobody reads
    names: Sequence[str] = ("scale_memory_ratio", "scale_chunks_per_s", "scale_cost_ratio")
    return {name: found[name] for name in names}


def _storage(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.annotation.storage import measure_storage

    policy = _policy(out, quick) / "models" / "policy"
    found = measure_storage(out / "storage", policy, *((1, 24) if quick else (3, 96)))
    table = titled_table("Tokens/s into a folder and into a bucket", "folder", "bucket", left=())
    for row in found["rows"]:
        table.add_row(f"{row['folder']:,.0f}", f"{row['bucket']:,.0f}")
    console.print(table)
    return {"bucket_vs_folder": found["bucket_vs_folder"]}


MEASURES = {
    "speed": _speed,
    "tokens": _tokens,
    "live": _live,
    "elastic": _elastic,
    "scale": _scale,
    "storage": _storage,
}

if __name__ == "__main__":
    measure_parts(__doc__, MEASURES, "runs/annotation")
