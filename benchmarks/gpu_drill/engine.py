"""Annotation on one card: beside the bare engine, and beside one request a step."""

from __future__ import annotations

from benchmarks.annotation.speed import measure_speed
from benchmarks.gpu_drill.figures import Record
from benchmarks.gpu_drill.settings import Drill
from pipelines.session.session import Session
from stepwiser.config import RunConfig


def config_of(drill: Drill) -> RunConfig:
    """Engines of one card: the pool, one that is compared alone, and the bare one."""
    engines = drill.size.engines
    return drill.config(
        "engine",
        f"engine.count={engines}",
        *drill.shares(engines + 2),
        "data.limit=100000",
        "annotate.responses=8",
    )


def measure_engine(drill: Drill, record: Record) -> None:
    """`vs_raw` of one engine, `vs_sequential` of all, tokens/s of each arm, prefix-cache hits.

    Leaves its annotations where `rl` finds them.
    """
    size = drill.size
    with Session(config_of(drill)) as session:
        session.start(["annotate"])
        record(engines=size.engines, seed=drill.seed)
        found = measure_speed(session, 1, size.problems, size.sequential_requests, True)
    (rates,) = found.pop("rows")
    record(**found, tokens_per_s=rates)
