"""Real runs: what the central parts cost with Ray, and whether runs of few nodes are as simulated.

One Ray of several nodes on this machine, one engine on each. The stage, its labelers, the pool and
the registry are the program's; engines are stubs, at once (for costs) or paced (for the check).
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from benchmarks.annotation.stub_engine import Policy, StubEngine
from benchmarks.command import CONFIG
from benchmarks.process_monitor import DRIVER, Moment, ProcessMonitor
from benchmarks.scale_sim import parts
from benchmarks.scale_sim.paced_engine import RATE, PacedEngine
from benchmarks.scale_sim.services import Services
from benchmarks.scale_sim.simulation import simulate
from benchmarks.scale_sim.work import Work, recorded
from cluster.local_nodes import LocalCluster, local_cluster
from pipelines.monitoring.prometheus import PrometheusMetrics
from pipelines.session.session import Session
from pipelines.stages import annotate
from stepwiser.annotation.annotator import Annotator
from stepwiser.annotation.stopping import stopping_plan
from stepwiser.config import RunConfig, load_config
from stepwiser.data.sources import load_problems
from stepwiser.data.verifiers import make_checker
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.run.resource_plan import engine_range
from stepwiser.tasks import load_base_model_dir

SIZES = (1, 8, 64, 256, 1024)
"""Engines for which costs that grow with them are measured."""
NODES = (1, 2, 4)
PROBLEMS = 32
"""Of a checked run, an engine: two minutes' work."""
UNIT = 2
CALLS = 1_000
NEW_ANSWERS = 0.188 * 0.06
"""Of MATH-500's answers 18.8 % are such as Math-Verify has to compare (counted); of a problem's
thousand samples sixty are taken to have an answer that no earlier one had (stated)."""
OVERRIDES = ("annotate.stopping=fixed", "annotate.stop_below=0", "engine.cpus=1")


@ray.remote(num_cpus=0)
class _Called:
    async def nothing(self) -> None:
        """What every call costs at least."""

    async def cpu(self) -> float:
        return time.process_time()


def config_of(cluster: LocalCluster, folder: Path, engines: int, problems: int) -> RunConfig:
    return load_config(
        CONFIG,
        [
            f"cluster.address={cluster.address}",
            f"run_dir={folder}",
            f"data.limit={problems}",
            f"annotate.problems_per_unit={UNIT}",
            f"engine.count={engines}",
            *OVERRIDES,
        ],
    )


def annotated(config: RunConfig, build: Any) -> tuple[dict[str, int], list[Moment]]:
    """Run the stage; its counts, and the processes with the tokens that the engines had made."""
    fewest, most = engine_range(config)
    with Session(config, Console(quiet=True), build=build) as session:
        policy = session.store.model_dir("policy")
        shutil.copytree(load_base_model_dir(), policy, dirs_exist_ok=True)
        session.start(["annotate"])
        pool = session.pool(str(policy), count=fewest, maximum=most)  # the stage gets the same

        def made() -> int:
            return sum(stats.generated_tokens for stats in pool.counters().values())

        with ProcessMonitor(made) as monitor:
            counts = annotate.run(session)["counts"]
    return counts, monitor.moments


def middle_rate(moments: Sequence[Moment], tokens: int) -> float:
    """Tokens/s from a fifth of all to three fifths, as in `simulation`: before, processes start,
    and after, engines run dry."""
    first = next(m for m in moments if m.done >= 0.2 * tokens)
    last = next(m for m in moments if m.done >= 0.6 * tokens)
    return (last.done - first.done) / (last.seconds - first.seconds)


def call_costs() -> tuple[float, float]:
    """CPU seconds of a call, of who calls and of who is called."""
    actor = _Called.remote()

    async def calls(number: int) -> None:
        for _ in range(number // 20):
            await asyncio.gather(*(actor.nothing.remote() for _ in range(20)))

    asyncio.run(calls(100))
    here, there = time.process_time(), ray.get(actor.cpu.remote())
    asyncio.run(calls(CALLS))
    here = time.process_time() - here
    there = ray.get(actor.cpu.remote()) - there
    ray.kill(actor)
    return here / CALLS, there / CALLS


def measure_services(cluster: LocalCluster, folder: Path, problems: int) -> Services:
    """Of every central part; ``problems``: annotated with an engine that answers at once."""
    call_s, called_s = call_costs()
    metrics = PrometheusMetrics("scale", "0/1")
    counts, moments = annotated(config_of(cluster, folder / "costs", 1, problems), StubEngine)
    spent = _spent(moments)
    requests = counts["problems"] + counts["prefixes"]
    units = -(-problems // UNIT)
    labeler = spent["MonteCarloLabeler"] / requests
    daemons = sum(spent.get(name, 0.0) for name in ("gcs_server", "raylet")) / requests
    sample_s, size = parts.long_sample_s()
    submit = min(call_s, labeler)
    return Services(
        submit_s=submit,
        answer_s=labeler - submit,
        sample_s=sample_s,
        route_s={n: parts.route_s(n) for n in SIZES},
        news_s={n: parts.news_s(n) for n in SIZES},
        check_s=parts.check_s(),
        new_answers=NEW_ANSWERS,
        registry_s={n: parts.registry_s(n) for n in SIZES},
        tick_s={n: parts.tick_s(n, metrics) for n in SIZES},
        call_s=call_s,
        called_s=called_s,
        unit_s=spent.get(DRIVER, 0.0) / units,
        write_s=parts.write_s(folder / "written"),
        daemons_s=daemons,
        gcs_node_s=_idle_gcs(cluster),
        sample_bytes=size,
    )


def _idle_gcs(cluster: LocalCluster, seconds: float = 10.0) -> float:
    """CPU seconds of Ray's GCS a second and node, with nothing to do."""
    with ProcessMonitor(lambda: 0) as monitor:
        time.sleep(seconds)
    spent = _spent(monitor.moments).get("gcs_server", 0.0)
    return spent / seconds / len(ray.nodes())


def _spent(moments: Sequence[Moment]) -> dict[str, float]:
    first, last = moments[0].cpu, moments[-1].cpu
    return {name: seconds - first.get(name, 0.0) for name, seconds in last.items()}


class _Recorder:
    """Answers as `StubEngine` does, and keeps the lengths."""

    def __init__(self) -> None:
        self.lengths: dict[str, list[list[int]]] = {}
        self._policy = Policy()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        samples = self._policy.samples(prompt_ids, sampling)
        self.lengths.setdefault(str(affinity), []).append([len(s.token_ids) for s in samples])
        return samples


def work_of(config: RunConfig) -> Work:
    """What the stage will ask the engines for: stubs answer a request the same wherever it is."""
    made = _Recorder()
    checker = make_checker(config.answer_checker, config.check_timeout_s)
    annotator = Annotator(
        generator=made,
        prompts=PromptFormat.from_model_dir(str(load_base_model_dir()), config.prompts),
        checker=checker,
        config=config.annotate,
        stopping=stopping_plan(config.annotate, config.label),
        seed=config.seed,
    )

    async def ask() -> None:
        for problem in load_problems(config.data, checker).problems:
            await annotator.annotate(problem)

    asyncio.run(ask())
    return recorded(made.lengths, config.annotate.problems_per_unit)


def check(
    cluster: LocalCluster, folder: Path, services: Services, engines: int, problems: int
) -> dict[str, float]:
    """A run of so many nodes beside the simulation of the same problems: tokens/s in the middle."""
    # Short samples, answers that are compared as texts, a disk, and all nodes on one machine.
    here = replace(services, sample_s=0.0, new_answers=0.0, put_s=0.0, node_engines=1)
    while len(ray.nodes()) < engines + 1:
        cluster.add_node(1)
    config = config_of(cluster, folder / f"check-{engines}", engines, problems)
    work = work_of(config)
    counts, moments = annotated(config, PacedEngine)
    made = counts["response_tokens"] + counts["rollout_tokens"]
    if made != work.tokens:
        raise RuntimeError(f"{made} tokens were made, and {work.tokens} were to be")
    told = simulate(work, RATE, here, engines)
    return {
        "engines": engines,
        "measured": middle_rate(moments, made),
        "predicted": told.middle_tokens_per_s,
    }


@dataclass(frozen=True)
class Measured:
    """All that needs Ray."""

    services: Services
    checks: list[dict[str, float]]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Measured:
        known = json.loads(path.read_text())
        return cls(Services.of(known["services"]), known["checks"])


def measure_nodes(out: Path, quick: bool) -> Measured:
    """Service times, and the check of real runs; what an earlier start has measured is kept."""
    file = out / "measured.json"
    known = Measured.read(file) if file.is_file() else None
    done = {row["engines"] for row in known.checks} if known else set()
    if known and done.issuperset(NODES):
        return known
    out.mkdir(parents=True, exist_ok=True)
    for folder in out.glob("*/"):
        shutil.rmtree(folder)
    with (
        # Ray puts its sockets 64 characters below this folder, and their paths may have 107.
        tempfile.TemporaryDirectory("", "sw-", "/tmp", ignore_cleanup_errors=True) as temporary,
        local_cluster(head={"temp_dir": temporary}) as cluster,
    ):
        cluster.add_node(1)
        if known is None:
            known = Measured(measure_services(cluster, out, 8 if quick else 256), [])
            known.write(file)
        for engines in NODES:
            if engines not in done:
                problems = (8 if quick else PROBLEMS) * engines
                known.checks.append(check(cluster, out, known.services, engines, problems))
                known.write(file)
    return known
