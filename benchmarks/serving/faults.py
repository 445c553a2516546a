"""What the service owes where clients leave half-way and replicas are killed.

Parts of `benchmarks.serving`, on a service that this process has started.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from ray import serve
from ray.exceptions import RayActorError

from actors.engine.engine import EngineStats
from serve.app import APP_NAME, JUDGE

Body = dict[str, Any]
LEAVING = STAYING = 4
CLIENTS = 8
QUESTIONS = 32
KILL_EVERY_S = 20.0


async def measure_disconnects(
    client: httpx.AsyncClient, body: Callable[[random.Random], Body], long: Body, rounds: int
) -> dict[str, float]:
    """Half of the clients leave with their answers half written.

    ``body`` makes what the others ask meanwhile, ``long`` is what those who leave have asked.
    aborted_tokens_share: tokens that the engine sampled for them after they had left, by those of
    their whole answers. What those who stay had under way at that time is counted with it, so it is
    an upper bound.
    """
    reply = await client.post("/v1/judge", json=long)
    whole = LEAVING * reply.raise_for_status().json()["usage"]["judge_tokens"]
    after = 0
    for number in range(rounds):
        begun = (await _stats()).generated_tokens
        leaving = [asyncio.create_task(client.post("/v1/judge", json=long)) for _ in range(LEAVING)]
        gone = asyncio.Event()

        async def stay(rng: random.Random, gone: asyncio.Event) -> int:
            told = 0
            while not gone.is_set():
                answer = await client.post("/v1/judge", json=body(rng))
                told += answer.raise_for_status().json()["usage"]["judge_tokens"]
            return told

        staying = [
            asyncio.create_task(stay(random.Random(f"{number} {i}"), gone)) for i in range(STAYING)
        ]
        while (await _stats()).generated_tokens - begun < whole / 3:
            await asyncio.sleep(0.02)
        assert not any(task.done() for task in leaving), "they leave before they are answered"
        left = (await _stats()).generated_tokens
        for task in leaving:
            task.cancel()
        gone.set()
        await asyncio.wait(leaving)
        assert sum(await asyncio.gather(*staying)), "somebody stayed"
        stats = await _stats()
        while stats.sequences_running + stats.sequences_waiting:
            await asyncio.sleep(0.02)
            stats = await _stats()
        after += stats.generated_tokens - left
    return {"aborted_tokens_share": after / (rounds * whole)}


@dataclass
class _Faults:
    answered: int = 0
    wrong: int = 0
    kills: int = 0
    statuses: Counter[int | str] = field(default_factory=Counter)
    longest_s: float = 0.0


async def measure_faults(
    client: httpx.AsyncClient, body: Callable[[random.Random], Body], seconds: float
) -> dict[str, float]:
    """A replica is killed every 20 seconds while clients ask at temperature 0 what they have asked
    before.

    fault_kills; fault_answers and how many of them differ from those before (fault_wrong_answers);
    fault_503: told to come back, which they did; fault_lost: connections broken, raw 500s and
    whatever else is no answer; fault_longest_s: a request until its answer, repetitions included.
    """
    bodies = [body(random.Random(number)) | {"temperature": 0} for number in range(QUESTIONS)]
    known = [_words(await client.post("/v1/judge", json=one)) for one in bodies]
    found, end = _Faults(), time.monotonic() + seconds

    async def ask(rng: random.Random) -> None:
        while time.monotonic() < end:
            number, asked = rng.randrange(QUESTIONS), time.monotonic()
            while True:
                try:
                    reply = await client.post("/v1/judge", json=bodies[number])
                except httpx.HTTPError as error:
                    found.statuses[type(error).__name__] += 1
                    break
                found.statuses[reply.status_code] += 1
                if reply.status_code == 200:
                    found.answered += 1
                    found.wrong += _words(reply) != known[number]
                if reply.status_code not in (429, 503) or "retry-after" not in reply.headers:
                    break
                await asyncio.sleep(float(reply.headers["retry-after"]))
            found.longest_s = max(found.longest_s, time.monotonic() - asked)

    async def kill() -> None:
        handle = serve.get_deployment_handle(JUDGE, app_name=APP_NAME)
        while time.monotonic() + KILL_EVERY_S < end:
            await asyncio.sleep(KILL_EVERY_S)
            try:
                pid = await asyncio.to_thread(lambda: handle.pid.remote().result(timeout_s=seconds))
            except RayActorError:
                continue  # the one before is not yet known to be gone
            os.kill(pid, signal.SIGKILL)
            found.kills += 1

    await asyncio.gather(kill(), *(ask(random.Random(-number)) for number in range(CLIENTS)))
    fine = sum(found.statuses[status] for status in (200, 429, 503))
    return {
        "fault_kills": found.kills,
        "fault_answers": found.answered,
        "fault_wrong_answers": found.wrong,
        "fault_503": found.statuses[503],
        "fault_lost": found.statuses.total() - fine,
        "fault_longest_s": found.longest_s,
    }


async def _stats() -> EngineStats:
    handle = serve.get_deployment_handle(JUDGE, app_name=APP_NAME)
    stats: EngineStats = await asyncio.to_thread(lambda: handle.stats.remote().result())
    return stats


def _words(reply: httpx.Response) -> list[Any]:
    steps = reply.raise_for_status().json()["steps"]
    return [(step["verdict"], step["analysis"]) for step in steps]
