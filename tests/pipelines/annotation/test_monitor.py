"""Annotation is watched without being held up: what a person sees, and what Prometheus scrapes.

Ray, the pool and the HTTP endpoint are real in the slow test; only the engines are scripted.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from actors.engine.engine import EngineOptions, EngineStats
from actors.pool.pool import EnginePool
from cluster.local_nodes import local_cluster
from pipelines.annotation import monitor
from pipelines.annotation.monitor import AnnotationMonitor
from pipelines.monitoring.progress import ProgressBar
from pipelines.session.session import Session
from stepwiser.annotation.outlook import WorkSeen
from stepwiser.annotation.throughput import EngineFigures, Figures
from stepwiser.config import RunConfig
from stepwiser.config.annotation import Shard
from stepwiser.run.status import read_status
from stepwiser.run.units import UnitLog, read_log, write_plan
from tests.support.scripted_engine import SLOTS, ScriptedEngine, work

FIGURES = Figures(
    seconds=60.0, problems=8, planned_problems=64, units=2, planned_units=16, chunks=1234,
    rollouts=5000, tokens=900_000, rollouts_per_s=83.3, tokens_per_s=15_000.0, cache_hits=0.7,
    engines={i: EngineFigures(7500.0, 0.7 if i else None) for i in range(2)},
    labels={"rel_effective": 0.81}, saved_rollouts=3000, saved_share=0.375, saved_tokens=450_000,
    gpu_hours=1.5, eta_s=420.0,
)  # fmt: skip

UNIT = {
    "problems": 2, "chunks": 12, "prefixes": 8, "rollouts": 40, "rollout_tokens": 800,
    "response_tokens": 100, "labelled: rel_effective": 10, "positive: rel_effective": 8,
}  # fmt: skip


def _text(of: Any) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(of)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_log_line_holds_the_most_important() -> None:
    assert monitor.note(FIGURES) == (
        "1,234 chunks, 83.3 rollouts/s, 15,000 tokens/s, 70% from cache, 81% positive, "
        "38% of rollouts saved, 1.50 GPU-hours, 2 engines"
    )


def test_the_table_holds_all_of_it() -> None:
    text = _text(monitor.table(FIGURES))
    for words in (
        "8 of 64", "1,234", "5,000", "83.3", "positive labels, rel_effective", "81.0%", "37.5%",
        "450,000", "1.50", "7 min 0 s", "7,500", "15,000", "70.0%",
    ):  # fmt: skip
        assert words in text
    many = vars(FIGURES) | {"engines": dict.fromkeys(range(40), EngineFigures(1.0, None))}
    assert "28 more" in _text(monitor.table(Figures(**many)))


def test_a_terminal_shows_the_table_under_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with ProgressBar(console, "annotate", 16, "units") as bar:
        bar.update(advance=3)
        assert "ETA" in _text(bar._bar)
        bar.show(under=monitor.table(FIGURES))
        assert bar.is_live
        shown = [_text(part) for part in bar._bar.get_renderables()]  # type: ignore[union-attr]
        assert "3/16" in shown[0] and "ETA" not in shown[0], "there is one time to go"
        assert "time to go" in shown[1]
        bar.show()
        assert len(list(bar._bar.get_renderables())) == 1  # type: ignore[union-attr]


def test_a_log_keeps_the_note_of_another_thread() -> None:
    console = Console(file=io.StringIO(), width=120)
    bar = ProgressBar(console, "annotate", 16, "units")
    bar.show(note="1,234 chunks")
    bar.update(advance=3)
    bar._say()
    line = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.fullmatch(r"annotate: 3/16 units, \d+ s, \S+/s, ETA \d+ s  1,234 chunks\n", line), (
        line
    )


def _session(root: Path, **config: Any) -> Session:
    session = Session(
        RunConfig.model_validate({"run_dir": str(root)} | config), Console(file=io.StringIO())
    )
    session.store.open(session.config)
    return session


def _said(session: Session) -> str:
    return session.console.file.getvalue()  # type: ignore[attr-defined]


# --- the whole watch ------------------------------------------------------------------------------


class _Pool:
    """Counters that the test sets, or an error."""

    placed = 2

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds

    def counters(self) -> dict[int, EngineStats]:
        if not self.seconds:
            raise RuntimeError("a look that fails")
        s = self.seconds.pop(0)
        return {0: EngineStats(round(100 * s), round(10 * s), round(5 * s), seconds=s)}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "POLL_S", 0.05)
    monkeypatch.setattr(monitor, "CURVE_S", 0.05)
    monkeypatch.setattr(monitor, "LOG_S", 0.05)


def test_a_look_that_fails_does_not_end_the_work(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = _session(tmp_path / "run", engine={"gpus": 0.5}, tracker="none")
    monkeypatch.setattr(
        monitor,
        "PrometheusMetrics",
        lambda *_: SimpleNamespace(address="", update=lambda *_: None, close=lambda: None),
    )
    log = UnitLog(session.store, Shard())
    write_plan(session.store, ["a", "b"], 4)
    log.start(1.0, 2)
    bar = session.progress("annotate", 2, "units")
    pool: Any = _Pool([1.0, 2.0, 3.0])
    with AnnotationMonitor(session, pool, bar, log, {"a": [1, 2], "b": [3, 4]}, 0.0) as watch:
        watch.finished(UNIT)
        time.sleep(0.5)
        watch.finished(UNIT)
    assert _said(session).count("annotation goes on") == 1 and "a look that fails" in _said(session)
    lines = [event for event in read_log(log.path) if event["event"] == "engines"]
    assert [line["engines"]["0"][1] for line in lines] == [100, 200, 300]
    assert lines[0]["gpus"] == 1.0


@pytest.fixture
def ray_that_exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray as the program starts one, but it exports metrics every three seconds: as often as a
    busy machine can be asked for them before Ray forgets a gauge."""
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "3000")
    with local_cluster(4):
        yield


def _scrape(url: str) -> dict[str, float]:
    """Our metrics by name and tags (those of our own), as Prometheus reads them."""
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    found = {}
    for name, tags, value in re.findall(r"^ray_(stepwiser_\w+)\{(.*)\} (\S+)$", text, re.M):
        own = re.findall(r'\b(run|shard|engine|rule)="([^"]*)"', tags)
        found[f"{name} " + ",".join(v for _, v in sorted(own))] = float(value)
    return found


def _wait_for(url: str, wanted: Mapping[str, float]) -> dict[str, float]:
    """Everything as it was last seen, once all that is wanted has been: Ray forgets a gauge that is
    not set again after two reports, and has not all of them at the same time."""
    found: dict[str, float] = {}
    deadline = time.monotonic() + 90.0
    while True:
        found |= _scrape(url)
        if wanted.items() <= found.items():
            return found
        assert time.monotonic() < deadline, f"{wanted} is not in {found}"
        time.sleep(0.5)


@pytest.mark.slow
def test_prometheus_log_and_curve_say_the_same(
    ray_that_exports: None, tmp_path: Path, quick: None
) -> None:
    session = _session(
        tmp_path / "run",
        name="watched",
        engine={"count": 2},
        annotate={"stopping": "exact", "rollouts": 8},
    )
    answers = tmp_path / "answers"
    answers.touch()
    pool = EnginePool(
        EngineOptions(model=str(answers), max_num_seqs=SLOTS), count=2, build=ScriptedEngine
    )
    shard = Shard(1, 3)
    log = UnitLog(session.store, shard)
    write_plan(session.store, [f"u{i}" for i in range(9)], 18)
    log.start(0.0, 3)
    todo = {f"u{i}": ["problem", "problem"] for i in (1, 4, 7)}
    try:
        bar = session.progress("annotate", 3, "units")
        with AnnotationMonitor(session, pool, bar, log, todo, 0.0) as watch:
            watch.work_seen(WorkSeen(problems=4, responses=16, response_tokens=800))
            asyncio.run(work(pool, range(40)))
            for _ in range(2):
                watch.finished(UNIT)
            address = re.search(r"http://\S+/metrics", _said(session))
            assert address
            found = _wait_for(
                address[0],
                {
                    "stepwiser_annotated_problems_total watched,1/3": 4,
                    "stepwiser_annotated_units_total watched,1/3": 2,
                    "stepwiser_annotated_chunks_total watched,1/3": 24,
                    "stepwiser_annotated_rollouts_total watched,1/3": 80,
                    "stepwiser_annotated_tokens_total watched,1/3": 1800,
                    "stepwiser_saved_rollouts_total watched,1/3": 2 * (8 * 8 - 40),
                    "stepwiser_planned_problems watched,1/3": 6,
                    "stepwiser_positive_label_ratio rel_effective,watched,1/3": 0.8,
                    "stepwiser_engines watched,1/3": 2,
                    "stepwiser_units_left watched,1/3": 1,
                    "stepwiser_engine_waiting_sequences 0,watched,1/3": 0,
                },
            )
            assert found["stepwiser_annotation_eta_seconds watched,1/3"] > 0
            assert found["stepwiser_rollouts_per_second watched,1/3"] > 0
            per_s = [found[f"stepwiser_engine_tokens_per_second {i},watched,1/3"] for i in (0, 1)]
            assert min(per_s) > 0
            # Engines report once a second: the last look should see all that they did.
            deadline = time.monotonic() + 30.0
            while sum(stats.generated_tokens for stats in pool.counters().values()) < 40:
                assert time.monotonic() < deadline, pool.counters()
                time.sleep(0.1)
        # Gauges would stand while later stages run: what no longer happens is set to nothing.
        _wait_for(
            address[0],
            {
                "stepwiser_engines watched,1/3": 0,
                "stepwiser_engine_tokens_per_second 0,watched,1/3": 0,
                "stepwiser_annotated_problems_total watched,1/3": 4,
            },
        )
    finally:
        pool.shutdown()
    log.end()
    lines = [event for event in read_log(log.path) if event["event"] == "engines"]
    tokens = {index: counters[1] for line in lines for index, counters in line["engines"].items()}
    assert sum(tokens.values()) == 40
    assert {engine.shard for engine in read_status(session.store).engines} == {"1/3"}
    assert (session.store.root / "wandb-annotate-1-of-3.id").is_file()
    assert list(session.store.root.glob("wandb/offline-run-*"))
    assert json.loads((session.store.root / "annotate" / "plan.json").read_text())["problems"] == 18
    assert "yellow" not in _said(session) and "goes on, but" not in _said(session)
