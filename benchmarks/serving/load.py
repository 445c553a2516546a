"""The judge asked over HTTP and without it, by any number of clients, on the same solutions."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import aiohttp
import httpx
import torch
from ray import serve
from rich.console import Console

from actors.engine.engine import Engine
from cluster.local_nodes import local_cluster
from cluster.ports import reserved_ports
from pipelines.monitoring.formatting import titled_table
from pipelines.session.engine_options import engine_options
from serve.app import ServeOptions, run
from serve.judging.service import JudgeService
from serve.proxy_errors import ENVIRONMENT
from serve.schema import JudgeRequest, ModelInfo
from stepwiser.config import RunConfig
from stepwiser.judging.judges import GenerativeJudge
from stepwiser.prompting.generation import Sampling
from stepwiser.prompting.hub.folders import resolve_model
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.prompting.verdicts import parse_verdict

IN_FLIGHT = 64
STEPS = 3
PATIENCE_S = 130.0
"""Of a client; the server's own ends before."""
LONG = 10
"""Steps of a solution that is judged at once and one step after the other."""


@dataclass
class Load:
    """What closed-loop clients saw."""

    seconds: float
    """Of the window that is counted."""
    statuses: Counter[int | str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    """Seconds, of answers with verdicts."""

    @property
    def goodput(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def broken(self) -> int:
        return sum(
            count
            for status, count in self.statuses.items()
            if isinstance(status, str) or status >= 500
        )


# --- the bare engine ------------------------------------------------------------------------------


async def measure_raw(
    config: RunConfig, seconds: float, counts: Sequence[int] = (1, 8, IN_FLIGHT)
) -> dict[int, Load]:
    """The judge's service around an engine in this process, without HTTP: by requests in flight."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a replica has
    model = resolve_model(config.policy_model)
    engine = Engine(engine_options(config, model))
    try:
        await engine.start()
        prompts = PromptFormat.from_model_dir(model, config.judge_prompts)
        sampling = Sampling(config.judge_max_tokens)
        service = JudgeService(
            GenerativeJudge(engine, prompts, sampling),
            config.engine.max_model_len,
            ModelInfo(name="raw", weight_version=0),
        )

        async def ask(body: dict[str, Any]) -> int:
            await service.answer(JudgeRequest.model_validate(body))
            return 200

        await drive(ask, 8, 2.0)  # compiled and warm
        return {clients: await drive(ask, clients, seconds) for clients in counts}
    finally:
        engine.shutdown()
        torch.set_num_threads(threads)


async def drive(
    ask: Callable[[dict[str, Any]], Awaitable[int | str]], clients: int, seconds: float
) -> Load:
    """Clients that each have one request in flight, until the time is up.

    What is answered in the first fifth is not counted: the queue fills in it.
    """
    load = Load(0.8 * seconds)
    began = time.monotonic()

    async def client(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() - began < seconds:
            asked = time.monotonic()
            status = await ask(solution(rng, STEPS))
            load.statuses[status] += 1
            now = time.monotonic()
            if status == 200 and 0.2 * seconds <= now - began < seconds:
                load.latencies.append(now - asked)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return load


def solution(rng: random.Random, steps: int) -> dict[str, Any]:
    """A body of /v1/judge: additions, some of them wrong."""
    value = rng.randint(10, 99)
    problem, texts = f"ana has {value} coins.", []
    for _ in range(steps):
        added = rng.randint(1, 9)
        problem += f" buys {added}."
        texts.append(f"buys {value}+{added}={value + added + rng.choice((0, 0, 1))}\n")
        value += added
    return {"problem": problem + " how many?", "steps": texts}


# --- the service ----------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(config: RunConfig) -> Iterator[str]:
    """The same judge over HTTP."""
    model = resolve_model(config.policy_model)
    environment = {"env_vars": {"OMP_NUM_THREADS": "1", **ENVIRONMENT}}
    with reserved_ports(1) as (port,), local_cluster(4, runtime_env=environment):
        options = ServeOptions(
            engine_options(config, model),
            config.judge_prompts,
            config.serve.model_copy(update={"port": port}),
            max_tokens=config.judge_max_tokens,
            gpus=config.engine.gpus,
        )
        try:
            yield run(options, blocking=False)
        finally:
            serve.shutdown()


async def measure_loads(url: str, counts: Sequence[int], seconds: float) -> dict[int, Load]:
    """Solutions over HTTP, by number of clients."""
    # Not httpx, whose pool takes longer for each request the more connections there are.
    connector, patience = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(PATIENCE_S)
    async with aiohttp.ClientSession(url, connector=connector, timeout=patience) as session:

        async def ask(body: dict[str, Any]) -> int | str:
            try:
                async with session.post("/v1/judge", json=body) as reply:
                    await reply.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                return type(error).__name__
            if reply.status == 429:
                await asyncio.sleep(float(reply.headers["Retry-After"]))
            return reply.status

        await drive(ask, 8, 2.0)
        return {clients: await drive(ask, clients, seconds) for clients in counts}


async def measure_load(
    url: str, raw: dict[int, Load], seconds: float, quick: bool, console: Console
) -> dict[str, Any]:
    counts = (1, 8, IN_FLIGHT, 512) if quick else (1, 8, IN_FLIGHT, 512, 1000)
    loads = await measure_loads(url, counts, seconds)
    print_loads(console, raw, loads)
    plateau = loads[IN_FLIGHT].goodput
    return {
        "vs_raw": plateau / raw[IN_FLIGHT].goodput,
        "p50_added_ms": 1000 * (median(loads[1].latencies) - median(raw[1].latencies)),
        "p99_added_ms": 1000 * (p99(loads[1].latencies) - p99(raw[1].latencies)),
        "overload_goodput": min(loads[n].goodput for n in counts if n >= 512) / plateau,
        "errors_5xx": sum(load.broken for load in loads.values()),
    }


async def measure_parallel(
    client: httpx.AsyncClient, config: RunConfig, solutions: int
) -> dict[str, float]:
    """One request for all steps against one a step, by a client that writes the prompts."""
    prompts, rng = config.judge_prompts, random.Random(7)
    at_once = one_by_one = 0.0
    same = 0
    for _ in range(solutions):
        body = solution(rng, LONG) | {"temperature": 0}
        began = time.monotonic()
        reply = await client.post("/v1/judge", json=body)
        at_once += time.monotonic() - began
        verdicts = [step["verdict"] for step in reply.raise_for_status().json()["steps"]]
        began = time.monotonic()
        for i, (step, verdict) in enumerate(zip(body["steps"], verdicts, strict=True)):
            message = prompts.judge.format(
                problem=body["problem"], history="".join(body["steps"][:i]), chunk=step
            )
            asked = {
                "messages": [{"role": "user", "content": message}],
                "temperature": 0,
                "max_tokens": config.judge_max_tokens,
            }
            answer = await client.post("/v1/chat/completions", json=asked)
            text = answer.raise_for_status().json()["choices"][0]["message"]["content"]
            found = {True: "Positive", False: "Negative", None: None}[parse_verdict(text)]
            same += found == verdict
        one_by_one += time.monotonic() - began
    return {
        "parallel_vs_sequential": one_by_one / at_once,
        "equal_verdicts": same / (solutions * LONG),
    }


def p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


def print_loads(console: Console, raw: dict[int, Load], loads: dict[int, Load]) -> None:
    table = titled_table("solutions/s", "clients", "engine", "HTTP", "p50", "p99", "answers")
    for clients, load in loads.items():
        bare = f"{raw[clients].goodput:.1f}" if clients in raw else ""
        table.add_row(
            f"{clients:,}",
            bare,
            f"{load.goodput:.1f}",
            f"{1000 * median(load.latencies):.0f} ms",
            f"{1000 * p99(load.latencies):.0f} ms",
            ", ".join(f"{count} × {status}" for status, count in load.statuses.most_common()),
        )
    console.print(table)
