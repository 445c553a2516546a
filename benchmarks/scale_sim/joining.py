"""What clusters that join one run in a bucket are worth, and whether they lose or double anything.

Clusters are process trees of this machine, each with its own Ray, its own cache and, where
`unshare` may, its own host name, so that a killed one is known by its silence alone. The bucket is
moto's behind a proxy that throttles (503 SlowDown).

- `storm`: real engines with the packaged model, and solutions that are given, so that every chunk
  of the run is known beforehand. Clusters join and leave at random moments, some by SIGTERM and
  some by SIGKILL of the whole tree. Then every row is read.
- `pace`: engines of fixed speeds (a queue that gives out so many tokens a second), since real ones
  would share one core, and the sum of their speeds would be that of the core. First each cluster
  annotates a run of its own, all at the same time, then all join one: what the shared core costs is
  in both. Efficiency is the units of the joint run over what each would have done alone in the time
  from its joining to its end; so it has what leases cost, waiting for the last units, and work done
  twice. It has no distance to the store, and no start of Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from actors.engine.engine import EngineOptions, EngineStats
from benchmarks.annotation.stub_engine import StubEngine
from benchmarks.command import CONFIG
from benchmarks.object_store import throttling_bucket
from stepwiser.config import RunConfig, load_config
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.run.store import RunStore
from stepwiser.run.units import (
    finished_units,
    read_plan,
    read_summary,
    read_unit,
)
from stepwiser.tasks import make_problems
from stepwiser.tasks.arithmetic import solution_chunks

PER_UNIT = 2
SMALL = (
    "annotate.responses=4",
    "annotate.rollouts=4",
    f"annotate.problems_per_unit={PER_UNIT}",
    "engine.count=1",
    "cluster.object_store_mb=100",
    "tracker=none",
)
RATES = {"slow": 500.0, "middle": 1000.0, "fast": 1500.0}
"""Tokens a second of the paced engines."""
PACED = ("engine.max_num_seqs=8", "annotate.problems_per_unit=1")
"""Little is under way at a time: a run of minutes stands for one of days."""
TOKENS_PER_PROBLEM = 750.0
"""About, of the stub's answers with `SMALL`; it only decides how long the parts last."""
GATES = ("alone", "joined")
"""Parts of `pace`, which all clusters begin together."""
REFUSED = 0.03
"""Share of the requests that the store throttles."""
DEADLINE_S = 3600.0


class PacedQueue(StubEngine):
    """An engine that gives out so many tokens a second, one request after the other."""

    def __init__(self, options: EngineOptions, tokens_per_s: float) -> None:
        super().__init__(options)
        self._tokens_per_s = tokens_per_s
        self._free_at = 0.0
        self._sequences = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> list[Sample]:
        samples = await super().generate(prompt_ids, sampling)
        tokens = sum(len(sample.token_ids) for sample in samples)
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + tokens / self._tokens_per_s
        self._sequences += sampling.n
        await asyncio.sleep(self._free_at - now)
        self._sequences -= sampling.n
        return samples

    def stats(self) -> EngineStats:
        running = min(self._sequences, self.options.max_num_seqs)
        return replace(
            super().stats(),
            sequences_running=running,
            sequences_waiting=self._sequences - running,
        )


# --- clusters -------------------------------------------------------------------------------------


@functools.cache
def _own_name(name: str) -> tuple[str, ...]:
    """What a command is put behind, to have a host name of its own where that may be."""
    words = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name)
    tried = shutil.which("unshare") and subprocess.run([*words, "true"], capture_output=True)
    return words if tried and tried.returncode == 0 else ()


@dataclass
class Cluster:
    """One process tree."""

    name: str
    folder: Path
    words: Sequence[str]
    process: subprocess.Popen[bytes] = field(init=False)
    known: set[psutil.Process] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        environment = dict(os.environ, XDG_CACHE_HOME=str(self.folder / f"cache-{self.name}"))
        environment |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        environment.pop("RAY_ADDRESS", None)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*_own_name(self.name), *self.words],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def look(self) -> None:
        """Remember the processes that it has now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            me = psutil.Process(self.process.pid)
            self.known |= {me, *me.children(recursive=True)}

    def vanish(self) -> None:
        """End every process of it at once."""
        self.look()
        for process in self.known:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def _works(cluster: Cluster) -> bool:
    """It has engines, and annotates; or has done so."""
    return b"annotate: " in cluster.log.read_bytes()


def _give_policy(run: str) -> None:
    """The packaged model stands for the chunk-tuned policy: what it writes does not matter here."""
    from stepwiser.run.model_exports import publish_model
    from stepwiser.tasks import load_base_model_dir

    publish_model(load_base_model_dir(), RunStore(run).model("policy"))


def _until(condition: Callable[[], bool], what: str, clusters: Sequence[Cluster] = ()) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        for one in clusters:
            one.look()
            if one.process.poll() not in (None, 0):
                if b"Ray did not start" in one.log.read_bytes():
                    one.start()  # the machine is busy, and it says to try again
                    continue
                raise RuntimeError(f"{one.name} ended:\n{one.log.read_text()[-3000:]}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {DEADLINE_S:g} s")
        time.sleep(0.5)


# --- storm ----------------------------------------------------------------------------------------


def storm(out: Path, address: str, problems: int, killed: int, left: int) -> dict[str, float]:
    """Three clusters at a time, so many of which are killed or told to leave at random moments."""
    run = f"{address}/storm-{secrets.token_hex(3)}"
    _give_policy(run)
    store = RunStore(run)
    program = [sys.executable, "-m", "pipelines.cli", "annotate"]
    source, rows = _solutions(out / "solutions.jsonl", problems)
    first = ["-c", str(CONFIG), f"run_dir={run}", f"annotate.source={source}", *SMALL]
    first.append("annotate.stop_below=0")
    join = ["--join", run, "engine.count=1"]
    rng = random.Random(7)
    kinds = [signal.SIGKILL] * killed + [signal.SIGTERM] * left
    ends = rng.sample(kinds, len(kinds))
    clusters = [Cluster("c0", out, [*program, *first])]
    codes: Counter[str] = Counter()
    try:
        _until(lambda: store.has("config.yaml"), "the first start", clusters)
        while ends or len(clusters) < 3:
            while len(clusters) < 3:
                name = f"c{sum(codes.values()) + len(clusters)}"
                clusters.append(Cluster(name, out, [*program, *join]))
                time.sleep(rng.uniform(0.0, 5.0))
            if not ends:
                break
            # Over the first three quarters of the work, however quick the machine is.
            due = problems // PER_UNIT * 3 * sum(codes.values()) // (4 * len(kinds))
            _until(functools.partial(_has_done, store, due), f"{due} units", clusters)
            victim = rng.choice(clusters)
            _until(functools.partial(_works, victim), f"work of {victim.name}", clusters)
            time.sleep(rng.uniform(2.0, 10.0))
            if victim.process.poll() is not None:
                break  # all is done already
            end = ends.pop()
            clusters.remove(victim)
            _say(store, f"{victim.name} gets {end.name}")
            if end is signal.SIGKILL:
                victim.vanish()
            else:
                victim.process.send_signal(end)
                victim.process.wait(300)
            codes[f"{end.name} {victim.process.returncode}"] += 1
        _until(lambda: all(c.process.poll() == 0 for c in clusters), "the end", clusters)
        codes["done 0"] += len(clusters)
    finally:
        for one in clusters:
            one.vanish()
    _say(store, f"ends: {dict(codes)}; not used: {len(ends)}")
    figures = rows_of(store)
    figures["join_lost"] += abs(rows - figures["join_chunks"])
    return {**figures, "ends_left": float(len(ends))}


def _solutions(file: Path, problems: int) -> tuple[Path, int]:
    """Given to the run, so that it is known beforehand which chunks it has to value: one solution
    of each problem, every other with a wrong step. Returns how many chunks they have."""
    chunks = 0
    with file.open("w") as lines:
        for number, problem in enumerate(make_problems(problems, seed=5)):
            steps = solution_chunks(problem)
            if number % 2:
                steps[1] = steps[1].partition("=")[0] + "=7\n"
            row = {"id": f"s{number}", "problem": problem.question, "steps": steps}
            lines.write(json.dumps(row | {"answer": problem.answer}) + "\n")
            chunks += len(steps)
    return file, chunks


def _has_done(store: RunStore, units: int) -> bool:
    return len(finished_units(store)) >= units


def _say(store: RunStore, words: str) -> None:
    print(f"{len(finished_units(store)):4d} units done: {words}", flush=True)


def rows_of(store: RunStore) -> dict[str, float]:
    """`join_lost`: units that are missing, and problems and rows that the counts have and the
    tables have not; `join_duplicates`: rows that are there twice. `unread`: files of rows that
    lost to others', or whose writers were killed."""
    plan = read_plan(store)
    assert plan is not None
    units = sorted(finished_units(store).intersection(plan["units"]))
    counted: Counter[str] = Counter()
    trajectories: Counter[str] = Counter()
    chunks: Counter[tuple[str, int]] = Counter()
    for unit in units:
        counted.update(read_summary(store, unit)["counts"])
        rows, values = read_unit(store, unit)
        trajectories.update(row.trajectory_id for row in rows)
        chunks.update((v.trajectory_id, v.chunk_index) for own in values.values() for v in own)
    lost = len(plan["units"]) - len(units)
    lost += abs(plan["problems"] - counted["problems"] - counted["rejected"])
    lost += abs(counted["trajectories"] - trajectories.total())
    lost += abs(counted["chunks"] - chunks.total())
    doubled = trajectories.total() - len(trajectories) + chunks.total() - len(chunks)
    unread = len(store.storage.names("values")) - len(units)
    return {
        "join_lost": float(lost),
        "join_duplicates": float(doubled),
        "join_units": float(len(units)),
        "join_chunks": float(chunks.total()),
        "join_unread": float(unread),
    }


# --- pace -----------------------------------------------------------------------------------------


def pace(out: Path, address: str, seconds: float) -> dict[str, float]:
    """Each cluster alone, for about so many seconds, and all of them in one run."""
    base = f"{address}/pace-{secrets.token_hex(3)}"
    runs = [f"{base}-{name}" for name in (*RATES, "all")]
    for run in runs:
        _give_policy(run)
    gates = out / base.rpartition("/")[2]
    gates.mkdir()
    words = [sys.executable, "-m", "benchmarks.scale_sim.joining", "--base", base]
    words += ["--gates", str(gates), "--seconds", str(seconds), "--cluster"]
    clusters = [Cluster(name, out, [*words, name]) for name in RATES]
    try:
        for gate in GATES:
            for name in RATES:
                _until((gates / f"{gate}-{name}").exists, f"{name} at {gate}", clusters)
            (gates / gate).touch()
        _until(lambda: all(c.process.poll() == 0 for c in clusters), "the end", clusters)
    finally:
        for one in clusters:
            one.vanish()
    stores = [RunStore(run) for run in runs]
    expected = 0.0
    for name, store in zip(RATES, stores[:-1], strict=True):
        alone, joined = (float((gates / f"{gate}-{name}.s").read_text()) for gate in GATES)
        speed = len(finished_units(store)) / alone
        expected += speed * joined
        print(f"{name}: {speed:.3f} units/s alone, {alone:.0f} s, then with others {joined:.0f} s")
    rows = rows_of(stores[-1])
    figures = {"join_efficiency": rows["join_units"] / expected}
    return figures | {f"paced_{key.removeprefix('join_')}": rows[key] for key in rows}


def _work_as(name: str, base: str, gates: Path, seconds: float) -> None:
    """One cluster of `pace`: alone, and then with the others."""
    from pipelines.session.session import Session
    from pipelines.stages import annotate

    def problems(*names: str) -> int:
        return round(sum(RATES[one] for one in names) * seconds / TOKENS_PER_PROBLEM)

    def config(run: str, count: int) -> RunConfig:
        return load_config(CONFIG, [f"run_dir={run}", f"data.limit={count}", *SMALL, *PACED])

    def annotate_from(gate: str, late_s: float = 0.0) -> None:
        session.start(["annotate"])
        session.pool(session.policy_dir())
        (gates / f"{gate}-{name}").touch()
        _until((gates / gate).exists, gate)
        time.sleep(late_s)
        began = time.monotonic()
        annotate.run(session)
        (gates / f"{gate}-{name}.s").write_text(str(time.monotonic() - began))

    build = functools.partial(PacedQueue, tokens_per_s=RATES[name])
    with Session(config(f"{base}-{name}", problems(name)), build=build) as session:
        annotate_from("alone")
        session.turn(config(f"{base}-all", problems(*RATES)))
        annotate_from("joined", random.Random(name).uniform(0.0, seconds / 8))


def measure_joining(out: Path, quick: bool) -> dict[str, float]:
    """`join_lost`, `join_duplicates` and `join_efficiency`, and what they were measured on."""
    folder = out / f"joining-{secrets.token_hex(3)}"
    folder.mkdir(parents=True)
    with throttling_bucket(folder / "s3.log", REFUSED) as address:
        figures = pace(folder, address, 90.0 if quick else 300.0)
        figures |= storm(folder, address, *((300, 1, 1) if quick else (1500, 3, 2)))
    for key in ("lost", "duplicates"):
        figures[f"join_{key}"] += figures.pop(f"paced_{key}")
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One cluster of the part `pace`.")
    for option in ("cluster", "base", "gates", "seconds"):
        parser.add_argument(f"--{option}", required=True)
    args = parser.parse_args()
    _work_as(args.cluster, args.base, Path(args.gates), float(args.seconds))
