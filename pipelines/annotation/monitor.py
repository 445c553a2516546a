"""Annotation monitored: a table under the bar or words in a log, metrics for Prometheus, a curve
for trackers, and lines of the unit log for `stepwiser status`.

All from one thread that looks at the engines' counters once a second. The loop that hands out units
never waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from ray.exceptions import RayError
from rich.console import RenderableType
from rich.table import Table

from actors.engine.engine import EngineStats
from actors.pool.pool import EnginePool
from pipelines.monitoring.formatting import MOST_ENGINES, duration, facts_table, known
from pipelines.monitoring.progress import ProgressBar
from pipelines.monitoring.prometheus import PrometheusMetrics
from pipelines.monitoring.trackers import Trackers
from pipelines.session.session import Session
from stepwiser.annotation.outlook import WorkSeen
from stepwiser.annotation.stopping import stopping_plan
from stepwiser.annotation.throughput import (
    CounterSnapshot,
    EngineCounters,
    Figures,
    ThroughputMonitor,
)
from stepwiser.run.periodic import repeating
from stepwiser.run.status import work_before
from stepwiser.run.units import UnitLog, finished_units, planned_units, read_log

POLL_S = 1.0
"""Between two looks; engines report once a second."""
CURVE_S = 10.0
"""Between two points of the curve."""
LOG_S = 30.0
"""Between two lines of the unit log about the engines: a day of them takes as long to read as three
thousand units."""


class AnnotationMonitor:
    """Watches one start's work from entering to leaving; `finished` tells it of each unit.

    ``held``: the session's GPU-seconds when the work began.
    """

    def __init__(
        self,
        session: Session,
        pool: EnginePool,
        bar: ProgressBar,
        log: UnitLog,
        todo: Mapping[str, Sequence[Any]],
        held: float,
    ) -> None:
        self._session, self._pool, self._bar, self._log = session, pool, bar, log
        self._held = held
        self._lock = threading.Lock()
        own = set(planned_units(log.store, log.shard))
        config = session.config
        self._throughput = ThroughputMonitor(
            time.monotonic(),
            len(todo),
            sum(map(len, todo.values())),
            stopping_plan(config.annotate, config.label),
            work_before(log.store, log.title, (own & finished_units(log.store)) - todo.keys()),
        )
        self._began = next(read_log(log.path))["time"]
        alone = log.shard.count == 1 and not log.writer
        name = "annotate" if alone else f"annotate-{Path(log.name).stem[4:]}"
        self._curve = Trackers(config, session.store, name, session.console, axis="problems")
        self._metrics = PrometheusMetrics(config.name, log.title)
        self._logged: CounterSnapshot = {}
        self._counters: CounterSnapshot = {}
        self._queues: dict[int, tuple[int, int]] = {}
        self._seen = WorkSeen()
        self._due_curve = self._due_log = time.monotonic()
        self._warned = False
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        self._session.console.print(
            f"metrics for Prometheus: {self._metrics.address}", highlight=False, soft_wrap=True
        )
        self._exits.enter_context(self._curve)
        self._exits.callback(self._metrics.close)
        self._exits.callback(self._bar.show)
        self._exits.callback(self._look, last=True)
        self._exits.enter_context(repeating(self._look, POLL_S, "annotation-monitor"))
        return self

    def __exit__(self, *error: Any) -> None:
        self._exits.__exit__(*error)

    def finished(self, counts: Mapping[str, int]) -> None:
        """A unit is done."""
        with self._lock:
            self._throughput.finished(time.monotonic(), counts)

    def elsewhere(self, units: int, problems: int, share: float) -> None:
        """So many were done by other starts, and of the speed of all this one has a share."""
        with self._lock:
            self._throughput.elsewhere(units, problems, share)

    def work_seen(self, seen: WorkSeen) -> None:
        """What the problems that were begun have come to."""
        self._seen = seen

    # --- the thread -----------------------------------------------------------------------------

    def _look(self, last: bool = False) -> None:
        try:
            self._poll(last)
        except Exception as error:
            # What is only watched must not end what is worked at, whatever fails.
            self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._session.console.print(
                f"[yellow]annotation goes on, but is not watched as it should be: {reason}",
                soft_wrap=True,
            )
        self._warned = True

    def _poll(self, last: bool) -> None:
        # While the registry restarts, what it last said stands.
        with suppress(RayError):
            told = self._pool.counters()
            self._counters = {i: counters(one) for i, one in told.items()}
            self._queues = {
                i: (one.sequences_running, one.sequences_waiting) for i, one in told.items()
            }
        held = self._session.engine_gpu_seconds - self._held
        now = time.monotonic()
        with self._lock:
            figures = self._throughput.look(now, self._counters, held, self._seen)
        self._metrics.update(figures, self._queues)
        if self._bar.is_live:
            self._bar.show(under=table(figures))
        else:
            self._bar.show(note=note(figures), left_s=figures.eta_s)
        if last or now >= self._due_curve:
            self._due_curve = now + CURVE_S
            # Seconds since the shard's very first start: they grow over all of its starts.
            self._curve.log({"step": int(time.time() - self._began), **figures.row()})
        if last or now >= self._due_log:
            self._due_log = now + LOG_S
            self._write(held)

    def _write(self, held: float) -> None:
        known = self._logged
        moved = {
            index: one
            for index, one in self._counters.items()
            if index not in known or one.seconds > known[index].seconds
        }
        gpus = self._pool.placed * self._session.config.engine.gpus
        self._log.engines(gpus, held, moved)
        self._logged = self._counters


def counters(stats: EngineStats) -> EngineCounters:
    """What the figures are made from."""
    return EngineCounters(
        stats.seconds, stats.generated_tokens, stats.prompt_tokens, stats.cached_prompt_tokens
    )


# --- as a person sees it --------------------------------------------------------------------------


def note(figures: Figures) -> str:
    """The most important figures in one line."""
    words = [f"{figures.chunks:,} chunks"]
    if figures.rollouts_per_s is not None:
        words.append(f"{figures.rollouts_per_s:,.1f} rollouts/s")
    if figures.tokens_per_s is not None:
        words.append(f"{figures.tokens_per_s:,.0f} tokens/s")
    if figures.cache_hits is not None:
        words.append(f"{figures.cache_hits:.0%} from cache")
    words += [f"{share:.0%} positive" for share in figures.labels.values()]
    if figures.saved_share is not None:
        words.append(f"{figures.saved_share:.0%} of rollouts saved")
    if figures.gpu_hours:
        words.append(f"{figures.gpu_hours:,.2f} GPU-hours")
    if len(figures.engines) != 1:
        words.append(f"{len(figures.engines)} engines")
    return ", ".join(words)


def table(figures: Figures) -> RenderableType:
    """All figures: of the work on the left, of the engines on the right."""
    engines = Table()
    engines.add_column("engine")
    engines.add_column("tokens/s", justify="right")
    engines.add_column("from cache", justify="right")
    for index, engine in list(figures.engines.items())[:MOST_ENGINES]:
        engines.add_row(
            str(index), f"{engine.tokens_per_s:,.0f}", known(engine.cache_hits, "{:.1%}")
        )
    more = len(figures.engines) - MOST_ENGINES
    if more > 0:
        engines.add_row(f"{more} more", "", "")
    engines.add_section()
    engines.add_row(
        "all", known(figures.tokens_per_s, "{:,.0f}"), known(figures.cache_hits, "{:.1%}")
    )
    both = Table.grid(padding=(0, 2))
    both.add_row(facts_table(_work(figures)), engines)
    return both


def _work(figures: Figures) -> list[tuple[str, str]]:
    rows = [
        ("problems", f"{figures.problems:,} of {figures.planned_problems:,}"),
        ("chunks valued", f"{figures.chunks:,}"),
        ("rollouts", f"{figures.rollouts:,}"),
        ("rollouts/s", known(figures.rollouts_per_s, "{:,.1f}")),
        *((f"positive labels, {rule}", f"{share:.1%}") for rule, share in figures.labels.items()),
    ]
    if figures.saved_rollouts is not None:
        rows += [
            ("rollouts saved", known(figures.saved_share, "{:.1%}")),
            ("tokens saved, about", f"{figures.saved_tokens or 0:,}"),
        ]
    return [
        *rows,
        ("GPU-hours", f"{figures.gpu_hours:,.2f}"),
        ("time to go", known(figures.eta_s, "{}", duration)),
    ]
