"""What a drill has found: as a table on the terminal, as a page for the documents, as one line."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from rich.table import Table

from benchmarks.gpu_drill.settings import Drill
from pipelines.monitoring.formatting import titled_table
from stepwiser.run.store import PACKAGES

SUMMARY = {
    "vs_raw": ("engine", "vs_raw"),
    "vs_sequential": ("engine", "vs_sequential"),
    "update_ms": ("weight_sync", "update_ms"),
    "mfu": ("learner", "mfu"),
    "peak_gb_16k": ("learner", "peak_gb_16k"),
    "logprob_gap": ("weight_sync", "logprob_gap"),
    "serve_vs_raw": ("serve", "vs_raw"),
}
"""Figures of the last line: the part and the name that each has there."""
BARS: Mapping[str, tuple[str, str, float]] = {
    "vs_raw": ("annotation by the bare engine's tokens/s", "at least", 0.95),
    "vs_sequential": ("annotation by that of one request a step", "at least", 18.0),
    "update_ms": ("weights of 1 GB to an engine on the same card, ms", "at most", 100.0),
    "mfu": ("learner's MFU at 16k tokens", "at least", 0.35),
    "logprob_gap": ("mean log-prob gap of engine and learner, nats", "at most", 0.02),
}
"""What a card of the H100 class should show."""


@dataclass(frozen=True)
class Outcome:
    """How one part ended."""

    part: str
    state: str
    """`done`, `failed`, `out of time`, `interrupted` or `not begun`."""
    seconds: float
    limit_s: float
    figures: Mapping[str, Any]


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The last line; a figure that was not measured is null, the seconds are those of all parts."""
    by_part = {one.part: one.figures for one in outcomes}
    found: dict[str, Any] = {
        name: by_part.get(part, {}).get(figure) for name, (part, figure) in SUMMARY.items()
    }
    done = sum(one.state == "done" for one in outcomes)
    return found | {"parts_done": done, "seconds": round(sum(o.seconds for o in outcomes), 1)}


def flat(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Names and values, those of tables below the table's name."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name} ")
        elif isinstance(value, float):
            yield before + name, f"{value:.4g}"
        else:
            yield before + name, str(value)


def results_table(outcomes: Sequence[Outcome]) -> Table:
    table = titled_table("GPU drill", "part", "figure", "value", left=("part", "figure"))
    for one in outcomes:
        state = f"{one.state}, {one.seconds:.0f} of {one.limit_s:.0f} s"
        table.add_section()
        table.add_row(one.part, state, "")
        for name, value in flat(one.figures):
            if name != "at_s":
                table.add_row("", name, value)
    return table


def machine() -> dict[str, str]:
    """The card, its driver, and the versions of what ran."""
    import torch

    facts = {"card": "none", "driver": "none"}
    if torch.cuda.is_available():
        query = "--query-gpu=name,driver_version,memory.total"
        said = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout.splitlines()[0]
        name, driver, memory = (word.strip() for word in said.split(","))
        facts = {"card": f"{name}, {memory}", "driver": driver, "CUDA": str(torch.version.cuda)}
    facts["Python"] = platform.python_version()
    for package in (*PACKAGES, "triton", "flash-attn"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def markdown(
    drill: Drill, facts: Mapping[str, str], outcomes: Sequence[Outcome], summary: Mapping[str, Any]
) -> str:
    """The page."""
    title = "GPU drill, rehearsed on a CPU" if drill.dry else f"GPU drill on {facts['card']}"
    lines = [f"# {title}", ""]
    if drill.dry:
        lines += [
            "No card was used: the packaged model, a few requests. The figures say that every part",
            "runs, and nothing of a GPU.",
            "",
        ]
    lines += [", ".join(f"{name} {value}" for name, value in facts.items()) + ".", ""]
    lines += [f"Seed {drill.seed}; {summary['seconds']:.0f} s in all.", ""]
    lines += ["| what | found | bar |", "|---|---|---|"]
    for name, (words, side, bar) in BARS.items():
        value = summary[name]
        lines.append(f"| {words} | {'-' if value is None else f'{value:.3g}'} | {side} {bar:g} |")
    for one in outcomes:
        lines += ["", f"## {one.part}", ""]
        lines += [f"{one.state}, {one.seconds:.0f} s of {one.limit_s:.0f} s.", ""]
        rows = [(name, value) for name, value in flat(one.figures) if name != "at_s"]
        if rows:
            lines += ["| figure | value |", "|---|---|"]
            lines += [f"| {name} | {value.replace('|', '/')} |" for name, value in rows]
    return "\n".join(lines) + "\n"
