"""CPU time of parts that run here without Ray: the very classes, for any number of engines."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from actors.engine.engine import EngineStats
from actors.pool.registry import EngineRegistry, Membership
from actors.pool.routing import HEADROOM, Load, Router
from benchmarks.scale_sim.work import RESPONSE_TOKENS, ROLLOUTS
from pipelines.monitoring.prometheus import PrometheusMetrics
from stepwiser.annotation.admission import Admission, Reading
from stepwiser.annotation.outlook import WorkSeen
from stepwiser.annotation.stopping import StoppingPlan, StoppingRule
from stepwiser.annotation.throughput import EarlierWork, EngineCounters, ThroughputMonitor
from stepwiser.data.records import ChunkValue, Trajectory
from stepwiser.data.verifiers import boxed_answer
from stepwiser.prompting.generation import Sample
from stepwiser.run.store import RunStore
from stepwiser.run.units import write_unit

SLOTS = 512
CLIENTS = 16
COST = Load(ROLLOUTS * 8192, ROLLOUTS)
BEATS = 4
"""Looks of a client's pulse, a second."""


def cpu(action: Callable[[], object], repeats: int = 5) -> float:
    """Median CPU seconds of this thread for an action; the first time is not counted."""
    action()
    spent = []
    for _ in range(repeats):
        began = time.thread_time()
        action()
        spent.append(time.thread_time() - began)
    return median(spent)


def busy_router(engines: int) -> tuple[Router, list[tuple[int, int]]]:
    """A client's router of full engines with requests that wait, and the requests at engines."""
    router = Router(SLOTS)
    router.set_members(range(engines))
    share = HEADROOM * SLOTS / min(CLIENTS, engines)
    elsewhere = int(HEADROOM * SLOTS - share)
    router.set_elsewhere({i: Load(elsewhere * 8192, elsewhere) for i in range(engines)})
    sent: list[tuple[int, int]] = []
    waiting = number = 0
    while waiting < 2 * engines:
        # A problem has some sixty requests, of one name.
        engine = router.submit(number, f"problem {number // 60}", COST)
        waiting += engine is None
        if engine is not None:
            sent.append((number, engine))
        number += 1
    return router, sent


def route_s(engines: int, requests: int = 200) -> float:
    """A request that comes and one that ends, in a client whose engines are full."""
    router, sent = busy_router(engines)
    serial = iter(range(10**7, 10**8))

    def cycle() -> None:
        for _ in range(requests):
            number = next(serial)
            engine = router.submit(number, f"problem {number // 60}", COST)
            if engine is not None:
                sent.append((number, engine))
            _, done = sent.pop(0)
            router.finish(done, COST)
            sent.extend(router.dispatch(done))

    return cpu(cycle, 3) / requests


def news_s(engines: int) -> float:
    """A second of a client with waiting requests: one answer of the registry, and its pulse."""
    router, _ = busy_router(engines)
    loads = {i: Load(500_000, 560) for i in range(engines)}
    told = pickle.dumps(Membership(7, None, loads))

    def take_in() -> None:
        router.set_elsewhere(pickle.loads(told).elsewhere)
        for _ in range(1 + BEATS):
            router.dispatch()

    return cpu(take_in)


def registry_s(engines: int) -> float:
    """A second of the registry: each engine's report, each client's question, the driver's two."""
    registry = EngineRegistry.__ray_metadata__.modified_class()
    clients = [f"{i:032x}" for i in range(min(CLIENTS, engines))]
    loads = {client: Load(300_000, 40) for client in clients}
    report = pickle.dumps((3, 0, EngineStats(), loads))
    members = {i: f"handle of {i}" for i in range(engines)}

    async def second() -> float:
        await registry.register(1, members, {})
        began = time.thread_time()
        for index in range(engines):
            _, serial, stats, by_client = pickle.loads(report)
            await registry.report(index, serial, stats, by_client)
        # All of them wait for a second without a change; waiting takes no CPU time.
        told = await asyncio.gather(*(registry.watch(1, client, 100) for client in clients))
        for membership in told:
            pickle.dumps(membership)
        pickle.dumps(await registry.readings())
        pickle.dumps(await registry.all_stats())
        return time.thread_time() - began

    async def seconds() -> float:
        return median([await second() for _ in range(2)])

    return asyncio.run(seconds())


def tick_s(engines: int, metrics: PrometheusMetrics | None) -> float:
    """A second of the driver: readings and admission, counters and what is shown of them.

    ``metrics``: where Ray is there to take them.
    """
    readings = pickle.dumps({i: Reading(500, 100, SLOTS, 0.7) for i in range(engines)})
    stats = pickle.dumps({i: EngineStats() for i in range(engines)})
    admission = Admission(ROLLOUTS)
    plan = StoppingPlan(StoppingRule.FIXED, ROLLOUTS, ROLLOUTS)
    monitor = ThroughputMonitor(0.0, 1000, 8000, plan, EarlierWork())
    clock = iter(range(1, 1000))

    def tick() -> None:
        admission.observe(pickle.loads(readings), 3 * engines)
        now = next(clock)
        pickle.loads(stats)
        counted = {i: EngineCounters(now, 2500 * now, 900 * now, 800 * now) for i in range(engines)}
        figures = monitor.look(float(now), counted, 0.0, WorkSeen())
        if metrics is not None:
            metrics.update(figures, dict.fromkeys(range(engines), (500, 100)))

    return cpu(tick)


def long_sample_s() -> tuple[float, float]:
    """What a labeler does for a sample of a solution's length beyond a short one, and the bytes of
    such a sample on their way."""

    def handled(tokens: int) -> tuple[float, int]:
        # Ids of a large vocabulary, four characters a token.
        text = "so 12 + 7 = 19 and " * (tokens * 4 // 19) + "the answer is \\boxed{19}."
        samples = [
            Sample(tuple(range(20_000 + i, 20_000 + i + tokens)), f"{i} {text}", "stop")
            for i in range(ROLLOUTS)
        ]
        blob = pickle.dumps(samples, protocol=5)
        seconds = cpu(lambda: [boxed_answer(s.text) for s in pickle.loads(blob)], 21)
        return seconds / ROLLOUTS, len(blob) // ROLLOUTS

    (long, size), (short, _) = handled(RESPONSE_TOKENS), handled(40)
    return max(0.0, long - short), size


ANSWERS = (
    ("\\frac{3\\sqrt{2}}{4}", "\\frac{\\sqrt{18}}{5}"),
    ("(2, -3)", "(2, 3)"),
    ("x^2 - 5x + 6", "(x - 2)(x - 4)"),
    ("[0, 4)", "(0, 4]"),
    ("\\frac{\\pi}{6}", "30^\\circ"),
    ("4 + 3i", "3 + 4i"),
    ("2^{10} - 1", "1024"),
    ("\\sqrt{5} - 1", "\\frac{4}{\\sqrt{5} + 1}"),
    ("y = 3x - 7", "y = 3x + 7"),
    ("1, 3, 7", "1, 2, 7"),
)
"""Such as neither texts nor numbers settle."""


def check_s() -> float:
    """What a checker's process takes for a pair of `ANSWERS`, the mean."""
    from stepwiser.data.answers.symbolic import same_mathematics

    # Each once: what was parsed before is remembered.
    began = time.thread_time()
    for pair in ANSWERS:
        same_mathematics(*pair)
    return (time.thread_time() - began) / len(ANSWERS)


def write_s(folder: Path, problems: int = 8, trajectories: int = 16, chunks: int = 7) -> float:
    """To write a unit as large as the paper's problems make it, to a local disk."""
    rows, values = [], []
    for number in range(problems * trajectories):
        names = (f"trajectory {number}", f"problem {number // trajectories}")
        texts = [f"step {number} " * 40] * chunks
        ids = list(range(RESPONSE_TOKENS))
        ends = [90 * (i + 1) - 20 for i in range(chunks)]
        rows.append(
            Trajectory(*names, "a question " * 20, "19", ids, texts, ends, "19", True, 9, 16)
        )
        values += [
            ChunkValue(*names, i, 9, 16, 0, 0, 6000, False, 16, 0.0, 9, 16, 0.3, 0.8)
            for i in range(chunks)
        ]
    store = RunStore(folder)

    def write() -> None:
        tables = {"trajectories": Trajectory.to_table(rows), "values": ChunkValue.to_table(values)}
        write_unit(store, "0123456789abcdef", tables, {"counts": {}, "rejects": [], "seconds": 1.0})

    began = time.process_time()
    cpu(write, 4)
    return (time.process_time() - began) / 5
