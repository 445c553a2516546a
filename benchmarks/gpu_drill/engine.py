"""Annotation on one card: beside the bare engine, and beside one request a step."""

from __future__ import annotations

from benchmarks.annotation.speed import measure_speed
from benchmarks.gpu_drill.figures import Record
from benchmarks.gpu_drill.settings import Drill
from pipelines.session.session import Session


def measure_engine(drill: Drill, record: Record) -> None:
    """`vs_raw` of one engine, `vs_sequential` of all, tokens/s of each arm, prefix-cache hits.

    Leaves its annotations where `rl` finds them.
    """
    size = drill.size
    config = drill.config(
        "engine",
        f"engine.count={size.engines}",
        # One engine that is compared, and the bare one.
        *drill.shares(size.engines + 2),
        "data.limit=100000",
        "annotate.responses=8",
    )
    with Session(config) as session:
        session.start(["annotate"])
        record(engines=size.engines, seed=drill.seed)
        found = measure_speed(session, 1, size.problems, size.sequential_requests, True)
    (rates,) = found.pop("rows")
    record(**found, tokens_per_s=rates)
