"""Commands that read run directories and start nothing: no Ray, no engine."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pipelines.monitoring.formatting import MOST_ENGINES, duration, facts_table, known
from pipelines.monitoring.progress import make_console
from stepwiser.annotation.label_rules import LabelRule
from stepwiser.errors import UserError
from stepwiser.run.export import Format, export
from stepwiser.run.merge import merge
from stepwiser.run.status import Status, read_status, to_json
from stepwiser.run.store import RunStore

Choice = TypeVar("Choice", bound=StrEnum)


def export_run(run: str, form: str, out: Path, rule: str | None) -> None:
    """`stepwiser export`."""
    counts = export(
        RunStore(run),
        _choose(Format, form, "--format"),
        out,
        _choose(LabelRule, rule, "--rule") if rule else None,
    )
    console = make_console()
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
    console = make_console()
    of = f" of the run's {merged.planned}" if merged.planned else ""
    console.print(f"{out}: {words}; it holds {merged.finished}{of}", soft_wrap=True)
    if merged.planned and merged.finished < merged.planned:
        console.print(f"{merged.planned - merged.finished} units are still to be annotated")


def show_status(run: str, as_json: bool) -> None:
    """`stepwiser status`."""
    status = read_status(RunStore(run))
    if as_json:
        print(to_json(status))
        return
    console = make_console()
    console.print(f"{run}: {status.state}", style="bold", highlight=False, soft_wrap=True)
    rows = (
        ("units", _of(status.units, status.planned_units)),
        *_owner_rows(status),
        ("problems", _of(status.problems, status.planned_problems)),
        (
            "all right / all wrong / mixed",
            " / ".join(
                f"{status.difficulty[k]:,}" for k in ("all_right", "all_wrong", "mixed_problems")
            ),
        ),
        ("trajectories", f"{status.trajectories:,}"),
        ("chunks valued", f"{status.chunks:,}"),
        ("rollouts", f"{status.rollouts:,}"),
        ("rollouts/s, last minutes of work", known(status.rollouts_per_s, "{:,.1f}")),
        *((("rollouts saved", f"{status.saved_share:.1%}"),) if status.saved_share else ()),
        ("tokens (responses + rollouts)", f"{status.tokens:,}"),
        ("tokens/s, last minutes of work", known(status.tokens_per_s, "{:,.0f}")),
        *_engine_rows(status),
        *(
            (f"positive labels, {rule}", known(share, "{:.1%}"))
            for rule, share in status.labels.items()
        ),
        ("GPU-hours", f"{status.gpu_hours:,.2f}"),
        ("last unit finished", known(status.last_s, "{} ago", duration)),
        ("time to go", known(status.eta_s, "{}", duration)),
    )
    console.print(facts_table(rows))
    for words, reasons in (("rejected", status.rejected), ("dropped", status.dropped)):
        what = "problems" if words == "rejected" else "responses"
        for reason, count in reasons.items():
            console.print(f"  {words} {count:,} {what}: {reason}", highlight=False, soft_wrap=True)


def _owner_rows(status: Status) -> list[tuple[str, str]]:
    """Who works on the units, where somebody does."""
    if not status.owners:
        return []
    rows = [
        (
            f"  {owner.owner}",
            f"{owner.held} held, {owner.done:,} done, {_rate(owner.units_per_s)}, "
            f"seen {duration(owner.last_s)} ago",
        )
        for owner in status.owners
    ]
    return [*rows, ("  nobody's", known(status.free_units, "{:,}"))]


def _rate(per_s: float) -> str:
    """Units take seconds or hours."""
    return f"{per_s:,.1f} units/s" if per_s >= 1 else f"{3600 * per_s:,.0f} units/h"


def _engine_rows(status: Status) -> list[tuple[str, str]]:
    """One an engine, as long as they can be looked through; `--json` has them all."""
    several = len({engine.shard for engine in status.engines}) > 1
    rows = [
        (
            f"engine {engine.engine}" + (f" of shard {engine.shard}" if several else ""),
            f"{engine.tokens_per_s:,.0f} tokens/s, {known(engine.cache_hits, '{:.1%}')} from cache",
        )
        for engine in status.engines
    ]
    more = len(rows) - MOST_ENGINES
    return rows[:MOST_ENGINES] + ([("engines", f"{more} more")] if more > 0 else [])


def _of(done: int, planned: int | None) -> str:
    return f"{done:,}" + (f" of {planned:,}" if planned is not None else "")


def _choose(kind: type[Choice], text: str, option: str) -> Choice:
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{option} {text} is none of {', '.join(kind)}") from None
