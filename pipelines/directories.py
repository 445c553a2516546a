"""Commands that read run directories and start nothing: no Ray, no engine."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from stepwiser.errors import UserError
from stepwiser.formats import Format, export
from stepwiser.labels import LabelRule
from stepwiser.merge import merge
from stepwiser.store import RunStore

Choice = TypeVar("Choice", bound=StrEnum)


def export_run(run: Path, form: str, out: Path, rule: str | None) -> None:
    """`stepwiser export`."""
    counts = export(
        RunStore(run),
        _choose(Format, form, "--format"),
        out,
        _choose(LabelRule, rule, "--rule") if rule else None,
    )
    console = Console()
    steps = counts["steps"]
    share = f", {counts['positive'] / steps:.1%} of them positive" if steps else ""
    console.print(
        f"{out}: {counts['written']} trajectories, {steps} labelled steps{share}", soft_wrap=True
    )
    for key, count in counts.items():
        if key.startswith("left out: "):
            console.print(f"  left out {count} trajectories: {key.removeprefix('left out: ')}")


def merge_runs(runs: Sequence[Path], out: Path) -> None:
    """`stepwiser merge`."""
    merged = merge([RunStore(run) for run in runs], RunStore(out))
    words = f"{merged.copied} units copied"
    if merged.present:
        words += f", {merged.present} were there already"
    console = Console()
    of = f" of the run's {merged.planned}" if merged.planned else ""
    console.print(f"{out}: {words}; it holds {merged.finished}{of}", soft_wrap=True)
    if merged.planned and merged.finished < merged.planned:
        console.print(f"{merged.planned - merged.finished} units are still to be annotated")


def _choose(kind: type[Choice], text: str, option: str) -> Choice:
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{option} {text} is none of {', '.join(kind)}") from None
