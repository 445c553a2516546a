"""The judge as a service on one card, beside the bare engine on the same solutions."""

from __future__ import annotations

import asyncio
from statistics import median, quantiles

import httpx

from benchmarks.gpu_drill.figures import Record
from benchmarks.gpu_drill.settings import Drill
from benchmarks.serving.load import Load, measure_loads, measure_parallel, measure_raw, serving
from stepwiser.config import RunConfig

LONG = 3
"""Solutions that are judged at once and one step after the other."""


def config_of(drill: Drill) -> RunConfig:
    """One engine that has the card, first in this process and then in the replica."""
    return drill.config(
        "serve",
        "engine.count=1",
        *drill.shares(1),
        "judge_max_tokens=" + ("90" if drill.dry else "128"),
        "serve.max_queued_requests=1024",
    )


def measure_serve(drill: Drill, record: Record) -> None:
    """`vs_raw` at the third number of clients, solutions/s and latencies at each, and a solution's
    steps together beside one after the other."""
    size = drill.size
    compared = size.clients[: min(3, len(size.clients))]
    config = config_of(drill)
    raw = asyncio.run(measure_raw(config, size.window_s, compared))
    record(raw={str(n): _figures(load) for n, load in raw.items()})
    with serving(config) as url:
        loads = asyncio.run(measure_loads(url, size.clients, size.window_s))
        record(
            http={str(n): _figures(load) for n, load in loads.items()},
            vs_raw=loads[compared[-1]].goodput / raw[compared[-1]].goodput,
            errors_5xx=sum(load.broken for load in loads.values()),
        )

        async def parallel() -> dict[str, float]:
            async with httpx.AsyncClient(base_url=url, timeout=130) as client:
                return await measure_parallel(client, config, LONG)

        record(**asyncio.run(parallel()))


def _figures(load: Load) -> dict[str, float]:
    """Of a window that nothing came through in, its count alone."""
    found = {"solutions_per_s": load.goodput}
    if load.latencies:
        found["p50_ms"] = 1000 * median(load.latencies)
    if len(load.latencies) > 1:
        found["p99_ms"] = 1000 * quantiles(load.latencies, n=100, method="inclusive")[98]
    return found
