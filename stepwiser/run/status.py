"""How far annotation is, read from the run directory alone, while it goes on and after.

The drivers' logs have one line a unit, so that ten thousand units are read in a fraction of a
second. A finished unit that no log knows (its driver was killed) is read from its own summary.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stepwiser.annotation.joining import UNIT_LEASES, OwnerReport
from stepwiser.annotation.stopping import stopping_plan
from stepwiser.annotation.throughput import (
    RECENT_S,
    CounterSnapshot,
    EarlierWork,
    EngineCounters,
    engine_figures,
    label_shares,
    saved_share,
)
from stepwiser.errors import UserError
from stepwiser.run.store import RunStore
from stepwiser.run.units import (
    finished_units,
    log_files,
    read_log,
    read_plan,
    read_summaries,
    read_summary,
    title_of,
)
from stepwiser.storage.lease import Leases

SILENT_S = 1800.0
"""A driver that wrote no end and nothing else for so long is taken for dead."""


@dataclass(frozen=True)
class Period:
    """One start of a driver: when it ran, and what its engines held and did."""

    shard: str
    """i/n, and of one that joined another also its name."""
    started: float
    last: float
    """Seconds since the epoch of its last word."""
    ended: bool
    """It said that it ended; else it is still running, or was killed."""
    gpus: float
    """Held at its last look at the engines; as planned before the first, and in older logs."""
    gpu_seconds: float = 0.0
    """Held up to that look."""
    looked: float | None = None
    """When that was; None where there was none."""
    looks: tuple[tuple[float, CounterSnapshot], ...] = field(default=(), repr=False)
    """Its last looks, as many as rates are taken over."""

    def alive(self, now: float) -> bool:
        return not self.ended and now - self.last < SILENT_S

    def gpu_hours(self, now: float) -> float:
        """Held so far; a killed driver counts until its last word."""
        until = now if self.alive(now) else self.last
        since = self.started if self.looked is None else self.looked
        return (self.gpu_seconds + self.gpus * (until - since)) / 3600


@dataclass(frozen=True)
class Done:
    """One finished unit."""

    unit: str
    time: float
    counts: dict[str, int]


@dataclass(frozen=True)
class Recent:
    """The last minutes of work, all drivers together."""

    begin: float
    """Seconds since the epoch."""
    seconds: float
    units: list[Done]
    """Finished in them, one at least."""

    def sum(self, name: str) -> int:
        return sum(unit.counts.get(name, 0) for unit in self.units)

    def per_s(self, number: float) -> float:
        return number / self.seconds


@dataclass(frozen=True)
class EngineStatus:
    """One engine, over the last minutes of work."""

    shard: str
    """Of the driver whose engine it is, i/n."""
    engine: int
    tokens_per_s: float
    cache_hits: float | None
    """Share of the prompt tokens that its prefix cache held; None where no prompt was answered."""


@dataclass(frozen=True)
class OwnerStatus:
    """One start of the program that works on the run now, on whatever cluster."""

    owner: str
    """Its machine's name and a few digits."""
    held: int
    """Units that it has under way, or will begin next."""
    done: int
    """Units that it has finished and that count."""
    units_per_s: float
    """Over its last minutes."""
    last_s: float
    """Seconds since its last sign of life, by its own clock and this one: as wrong as these differ.
    It gives one every 20 s."""


@dataclass(frozen=True)
class Status:
    """What `stepwiser status` shows."""

    run: str
    state: str
    """`not started`, `running`, `stopped` (units are left and nobody works), or `done`."""
    units: int
    planned_units: int | None
    problems: int
    planned_problems: int | None
    trajectories: int
    chunks: int
    rollouts: int
    rollouts_per_s: float | None
    """Over the last minutes of work; None before the first unit, as all rates."""
    saved_share: float | None
    """Of the planned rollouts, those that stopping early made needless; None where it is off."""
    tokens: int
    tokens_per_s: float | None
    engines: list[EngineStatus]
    """Those that were up in the last minutes of work, of all shards."""
    units_per_s: float | None
    eta_s: float | None
    """Seconds to go at that rate; None unless it is running."""
    gpu_hours: float
    labels: dict[str, float | None]
    """Positive share of the labels, by rule; None where a rule gave no label, as one that rollouts
    were stopped early for (exact, sequential) does for every other."""
    rejected: dict[str, int]
    """Problems that could not be annotated, by reason."""
    dropped: dict[str, int]
    """Responses that could not be used, by reason."""
    difficulty: dict[str, int]
    """Problems all of whose responses are right, wrong, or neither."""
    last_s: float | None
    """Seconds since the last unit was finished."""
    owners: list[OwnerStatus]
    """Who works on it; one that was killed stays until all is done."""
    free_units: int | None
    """Neither finished nor anybody's; None before annotation ever started."""


def read_status(store: RunStore, now: float | None = None) -> Status:
    """Look at a run directory.

    Args:
        store: the run.
        now: seconds since the epoch; the clock's if None.

    Raises UserError where it is no run directory.
    """
    if not store.has("config.yaml"):
        raise UserError(f"{store.place} is not a run directory: it has no config.yaml")
    now = time.time() if now is None else now
    plan = read_plan(store)
    there = finished_units(store)
    # Units of an earlier plan (other unit sizes) stay in the folder and are no part of this one.
    units = there & set(plan["units"]) if plan else there
    done, periods = _read_logs(store, units)
    counts: Counter[str] = Counter()
    for unit in done:
        counts.update(unit.counts)
    over = plan is not None and len(units) == len(plan["units"])
    owners, held = ([], set[str]()) if over else _owners(store, now, units)
    alive = any(period.alive(now) for period in periods)
    alive = alive or any(owner.last_s < SILENT_S for owner in owners)
    planned = len(plan["units"]) if plan else None
    recent = _recent(done, periods, now if alive else None)
    per_s = recent.per_s(len(recent.units)) if recent else None
    config = store.config()
    left = planned - len(units) if planned is not None else None
    if left == 0:
        state = "done"
    elif alive:
        state = "running"
    else:
        state = "stopped" if units or periods else "not started"
    return Status(
        run=store.place,
        state=state,
        units=len(units),
        planned_units=planned,
        problems=counts["problems"] + counts["rejected"],
        planned_problems=plan["problems"] if plan else None,
        trajectories=counts["trajectories"],
        chunks=counts["chunks"],
        rollouts=counts["rollouts"],
        rollouts_per_s=recent.per_s(recent.sum("rollouts")) if recent else None,
        saved_share=saved_share(stopping_plan(config.annotate, config.label), counts),
        tokens=counts["response_tokens"] + counts["rollout_tokens"],
        tokens_per_s=(
            recent.per_s(recent.sum("response_tokens") + recent.sum("rollout_tokens"))
            if recent
            else None
        ),
        engines=_engines(periods, recent.begin if recent else now - RECENT_S),
        units_per_s=per_s,
        eta_s=left / per_s if state == "running" and left is not None and per_s else None,
        gpu_hours=_gpu_hours(store, periods, now),
        labels=_label_shares(store, counts),
        rejected=_rejected(store, done),
        dropped=_with_prefix(counts, "malformed: "),
        difficulty={name: counts[name] for name in ("all_right", "mixed_problems", "all_wrong")},
        last_s=now - done[-1].time if done else None,
        owners=owners,
        free_units=None if left is None else left - len(held),
    )


def _owners(store: RunStore, now: float, done: set[str]) -> tuple[list[OwnerStatus], set[str]]:
    """Who works on the run, and all that they hold."""
    found = Leases(store.storage, UNIT_LEASES, "").others()
    reports = {name: OwnerReport.parse(said) for name, said in sorted(found.items())}
    owners = [
        OwnerStatus(
            name,
            len(report.held - done),
            report.done,
            report.per_s,
            max(0.0, now - found[name]["time"]),
        )
        for name, report in reports.items()
    ]
    return owners, set[str]().union(*(report.held for report in reports.values())) - done


def _read_logs(store: RunStore, units: set[str]) -> tuple[list[Done], list[Period]]:
    """Finished units in order of time, and the drivers' periods."""
    done: dict[str, Done] = {}
    periods: list[Period] = []
    for path in log_files(store):
        periods += _read_periods(path, units, done)
    unlogged = list(units - done.keys())
    for unit, summary in zip(unlogged, read_summaries(store, unlogged), strict=True):
        done[unit] = Done(unit, _written(store, unit, summary), summary["counts"])
    return sorted(done.values(), key=lambda unit: unit.time), periods


def _written(store: RunStore, unit: str, summary: dict[str, Any]) -> float:
    """When a unit was finished, seconds since the epoch."""
    if store.remote:
        # What is here is a copy, whose date is that of the copying.
        return float(summary.get("time", 0.0))
    return (store.table_dir("units") / f"{unit}.json").stat().st_mtime


def _read_periods(path: Path, units: set[str], done: dict[str, Done]) -> list[Period]:
    """Periods of one log; its units go into `done`."""
    periods: list[Period] = []
    shard = title_of(path)
    current: dict[str, Any] = {}
    looks: deque[tuple[float, CounterSnapshot]] = deque()

    def close(ended: bool) -> None:
        if current:
            periods.append(Period(shard, ended=ended, looks=tuple(looks), **current))
            current.clear()
            looks.clear()

    for event in read_log(path):
        if event["event"] == "start":
            close(ended=True)  # the same shard was started again: the earlier driver is gone
            current.update(started=event["time"], gpus=event["gpus"])
        elif event["event"] == "unit" and event["unit"] in units:
            done[event["unit"]] = Done(event["unit"], event["time"], event["counts"])
        elif event["event"] == "engines" and current:
            current.update({name: event[name] for name in ("gpus", "gpu_seconds")})
            current["looked"] = event["time"]
            # A line has the engines that were up since the one before.
            known = {**looks[-1][1]} if looks else {}
            known |= {int(i): EngineCounters(*counters) for i, counters in event["engines"].items()}
            looks.append((event["time"], known))
            while len(looks) > 1 and looks[1][0] <= event["time"] - RECENT_S:
                looks.popleft()
        if current:
            current["last"] = event["time"]
        if event["event"] == "end":
            close(ended=True)
    close(ended=False)
    return periods


def _recent(done: Sequence[Done], periods: Sequence[Period], now: float | None) -> Recent | None:
    """The last minutes of work; None where no unit was finished in them.

    Up to now while a driver works, so that a stall shows; else up to the last unit.
    """
    if not done or not periods:
        return None  # without a log there are only the files' dates, which a copy changes
    end = done[-1].time if now is None else now
    # The time before the work began is no slow work: after an interruption, that of the latest
    # start counts.
    fresh = [
        p.started for p in periods if not any(q.started < p.started <= q.last for q in periods)
    ]
    begin = max(end - RECENT_S, max((s for s in fresh if s < end), default=min(fresh)))
    recent = [unit for unit in done if unit.time > begin]
    return Recent(begin, max(end - begin, 1e-9), recent) if recent else None


def _engines(periods: Iterable[Period], begin: float) -> list[EngineStatus]:
    """Of each shard's latest start, those that were up since then."""
    engines = []
    latest = {period.shard: period for period in periods}
    for period in latest.values():
        if not period.looks or period.looks[-1][0] <= begin:
            continue
        before = [look for look in period.looks if look[0] <= begin] or period.looks[:1]
        figures = engine_figures(before[-1][1], period.looks[-1][1])
        engines += [
            EngineStatus(period.shard, index, one.tokens_per_s, one.cache_hits)
            for index, one in figures.items()
        ]
    return engines


def work_before(store: RunStore, driver: str, units: set[str]) -> EarlierWork:
    """What was done before a driver's start: these units, and what was held for them by those
    whose diary it goes on with (`UnitLog.title`)."""
    done, periods = _read_logs(store, units)
    counts: Counter[str] = Counter()
    for unit in done:
        counts.update(unit.counts)
    # The start that asks has not ended.
    ended = [p for p in periods if p.ended and p.shard == driver]
    return EarlierWork(len(done), counts, sum(period.gpu_hours(period.last) for period in ended))


def _gpu_hours(store: RunStore, periods: Sequence[Period], now: float) -> float:
    """By the logs; a run from before there were any says it at its end."""
    if periods:
        return sum(period.gpu_hours(now) for period in periods)
    return float((store.read_metrics("cost-annotate") or {}).get("gpu_hours", 0.0))


def _label_shares(store: RunStore, counts: Counter[str]) -> dict[str, float | None]:
    """From the label stage where it ran; else of the chunks labelled while they were annotated."""
    metrics = store.read_metrics("label")
    if metrics and "rules" in metrics:
        return {row["rule"]: row.get("positive_share") for row in metrics["rules"]}
    return dict(label_shares(counts))


def _rejected(store: RunStore, done: Iterable[Done]) -> dict[str, int]:
    """Reasons are long, so only the units' own files hold them."""
    reasons: Counter[str] = Counter()
    for unit in done:
        if unit.counts.get("rejected"):
            rejects = read_summary(store, unit.unit)["rejects"]
            reasons.update(reject["reason"] for reject in rejects)
    return dict(reasons.most_common())


def _with_prefix(counts: Counter[str], prefix: str) -> dict[str, int]:
    return {k.removeprefix(prefix): n for k, n in counts.most_common() if k.startswith(prefix)}


def to_json(status: Status) -> str:
    """One JSON object, for machines."""
    return json.dumps(asdict(status), indent=1)
