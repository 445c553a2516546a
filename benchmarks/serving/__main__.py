"""What the judge costs and holds as a service, against the bare engine on the same prompts.

    python -m benchmarks.serving            about an hour on two cores
    python -m benchmarks.serving --quick    about eight minutes
    python -m benchmarks.serving --only load --model FOLDER

One judge (the packaged base model, or any by --model), one replica. The bare engine is asked in the
same process that then asks over HTTP, so both pay for their client; on a machine of few cores the
client, the proxy, the ingress and the engine share them. The last line is one JSON object:

vs_raw: solutions/s over HTTP by those of the bare engine, both with 64 in flight; p50_added_ms,
p99_added_ms: latency over HTTP less that of the bare engine, one in flight; parallel_vs_sequential:
time of a solution's steps asked one after the other, as scripts do, by that of one request;
equal_verdicts: share of steps with the same verdict in both, at temperature 0; overload_goodput:
solutions/s with 512 clients (and 1,000 in full) by those with 64; errors_5xx: answers of that kind,
and broken connections, in all of it; aborted_tokens_share: tokens sampled for clients that had
left, by those of their whole answers; soak_memory_ratio: memory of the service at the end of half
an hour of 256 clients by that at its beginning, soak_errors: answers in it but 200 and 429;
fault_…: two replicas, one of which is killed every 20 seconds (`faults`). `--only` measures some of
the parts.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import httpx
from rich.console import Console

from benchmarks.command import CONFIG, arguments
from benchmarks.serving.faults import measure_disconnects, measure_faults
from benchmarks.serving.load import (
    LONG,
    PATIENCE_S,
    STEPS,
    Load,
    measure_load,
    measure_parallel,
    measure_raw,
    serving,
    solution,
)
from benchmarks.serving.soak import measure_soak
from stepwiser.config import RunConfig, load_config

PARTS = ("load", "parallel", "disconnects", "soak", "faults")


def main() -> None:
    parser = arguments(__doc__, "a part of the seconds, no 1,000 clients", None)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--model", help="a judge of real size, asked as configs/real-0.5b-cpu.yaml")
    args = parser.parse_args()
    wanted, quick, console = set(args.only), args.quick, Console()
    seconds = 20.0 if quick else 60.0
    if args.model is None:
        small = ["engine.kv_cache_mb=256", "serve.max_queued_requests=128"]
        config = load_config(CONFIG, small)
    else:
        # A solution takes seconds there: more of them would wait beyond their deadline.
        seconds *= 6
        large = [
            f"policy_model={args.model}",
            "judge_max_tokens=48",
            "serve.max_queued_requests=16",
        ]
        config = load_config(CONFIG.with_name("real-0.5b-cpu.yaml"), large)
    figures: dict[str, Any] = {}
    raw: dict[int, Load] = {}
    if "load" in wanted:
        raw = asyncio.run(measure_raw(config, seconds))
    if wanted - {"faults"}:
        with serving(config) as url:
            if raw:
                figures |= asyncio.run(measure_load(url, raw, seconds, quick, console))
            figures |= asyncio.run(measure_others(url, config, wanted, quick))
            if "soak" in wanted:
                figures |= asyncio.run(measure_soak(url, 90.0 if quick else 1800.0, console))
    if "faults" in wanted:
        two = config.model_copy(update={"serve": config.serve.model_copy(update={"replicas": 2})})
        with serving(two) as url:
            figures |= asyncio.run(measure_killed(url, 60.0 if quick else 600.0))
    print(json.dumps(figures))


async def measure_others(
    url: str, config: RunConfig, wanted: set[str], quick: bool
) -> dict[str, float]:
    figures: dict[str, float] = {}
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        if "parallel" in wanted:
            figures |= await measure_parallel(client, config, 5 if quick else 30)
        if "disconnects" in wanted:
            long = solution(random.Random(1), LONG) | {"votes": 64}
            figures |= await measure_disconnects(client, _short, long, 2 if quick else 10)
    return figures


async def measure_killed(url: str, seconds: float) -> dict[str, float]:
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        return await measure_faults(client, _short, seconds)


def _short(rng: random.Random) -> dict[str, Any]:
    return solution(rng, STEPS)


if __name__ == "__main__":
    main()
