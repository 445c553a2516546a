"""SIGKILL for processes of a command under test, and what became of all of them."""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Self

import psutil

from tests.support import preload
from tests.support.commands import finish, start

TITLES = {
    "engine": "ray::RolloutGenerator",
    "labeler": "ray::MonteCarloLabeler",
    "registry": "ray::EngineRegistry",
    "learner": "ray::RayTrainWorker",
    "collector": "ray::ExperienceCollector",
    "evaluator": "ray::Evaluator",
    "worker": "ray::",
}
"""How Ray calls the processes of each kind; a worker is any of them."""
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Parts of Ray itself, not of a run: its node ends with them."""
POLL_S = 0.05
LOOK_S = 1.0
"""Reading the list of all processes at every poll would be a tenth of what a test does."""


class Family:
    """The processes of a command, whoever started them, also those of earlier starts."""

    def __init__(self, stage: str, *overrides: str, module: str = "pipelines.cli") -> None:
        self._start = partial(start, stage, *overrides, module=module)
        self.known: set[psutil.Process] = set()
        self.process: Popen[str] = self._start()
        self._again = 3
        self._looked = 0.0
        self.look()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.alive():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends with one that was killed
                process.kill()

    def _look_again(self) -> None:
        if time.monotonic() > self._looked + LOOK_S:
            self.look()

    def look(self) -> list[psutil.Process]:
        """Those of the present start."""
        self._looked = time.monotonic()
        # One pass over all processes: one for each worker takes seconds on a busy machine, in which
        # what is to be killed may be done.
        children: dict[int, list[psutil.Process]] = defaultdict(list)
        by_pid: dict[int, psutil.Process] = {}
        for process in psutil.process_iter(["ppid"]):
            by_pid[process.pid] = process
            children[process.info["ppid"]].append(process)
        for worker, fork in preload.forks().items():
            if worker in by_pid and fork in by_pid:
                children[worker].append(by_pid[fork])
        found = [by_pid[self.process.pid]] if self.process.pid in by_pid else []
        for process in found:  # which grows
            found += children[process.pid]
        self.known |= set(found)
        return found

    def of_kind(self, kind: str) -> list[psutil.Process]:
        """Living processes that a kind of victim may be, the oldest first."""
        if kind == "driver":
            return [psutil.Process(self.process.pid)]
        found = []
        for process in self.look():
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                title = process.cmdline()[0]
                if title.startswith(TITLES[kind]) and not title.startswith(AGENTS):
                    found.append(process)
        return sorted(found, key=lambda p: (p.create_time(), p.pid))

    def _check(self, deadline: float, what: str) -> None:
        """The command goes on; where it said that Ray had no chance, it is started again."""
        assert time.monotonic() < deadline, f"timed out: {what}"
        if self.process.poll() is not None:
            output = finish(self.process)
            assert "Ray did not start" in output and self._again, f"the command ended:\n{output}"
            self._again -= 1
            self.process = self._start()

    def finish(self, code: int = 0, timeout: float = 900) -> str:
        """Wait for the end of the command and of all its processes; returns what it printed."""
        deadline = time.monotonic() + timeout
        while (now := self.process.poll()) != code:
            if now is not None:
                self._check(deadline, "the end of the command")
            assert time.monotonic() < deadline, "the command does not end"
            self._look_again()
            time.sleep(POLL_S)
        output = finish(self.process)
        deadline = time.monotonic() + 60
        while left := self.alive():
            assert time.monotonic() < deadline, f"orphans: {left}"
            time.sleep(POLL_S)
        return output

    def kill(self, kind: str, rng: random.Random) -> str:
        """End one of a kind, as soon as there is one; returns the title it had."""
        deadline = time.monotonic() + 600
        while True:
            self._check(deadline, f"there is no {kind} to kill")
            victims = self.of_kind(kind)
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                victim = rng.choice(victims)
                title = f"{victim.cmdline()[0]} {victim.pid}"
                victim.kill()
                break
            time.sleep(POLL_S)
        if kind == "driver":
            assert self.process.wait() == -signal.SIGKILL
            time.sleep(rng.uniform(0.0, 2.0))
            self.process = self._start()
        return title

    def wait_for(self, condition: Callable[[], bool], timeout: float = 900) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            self._check(deadline, "waiting for the command")
            self._look_again()
            time.sleep(POLL_S)

    def alive(self) -> list[psutil.Process]:
        """Which of all there have been are left."""
        left = []
        for process in self.known:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
        return left


def finished(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "units").glob("*.json")}


def digests(folder: Path, unit: str) -> tuple[str, ...]:
    """Of all files of a unit: rows and summary."""
    names = (f"trajectories/{unit}.parquet", f"values/{unit}.parquet", f"units/{unit}.json")
    return tuple(hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names)


def kill_at_random(
    family: Family, folder: Path, units: int, kinds: Counter[str], seed: int
) -> dict[str, tuple[str, ...]]:
    """So many kills of each kind in random order, spread over the first three quarters of the work.

    The rest is there since units end in bursts: the run must not be at its end before the last
    kill. Returns the digests of every unit that was finished at some kill, as they were then.
    """
    rng = random.Random(seed)
    order = list(kinds.elements())
    rng.shuffle(order)
    seen: dict[str, tuple[str, ...]] = {}
    began = time.monotonic()
    for number, kind in enumerate(order, 1):
        due = number * units * 3 // (4 * len(order))
        family.wait_for(lambda due=due: len(finished(folder)) >= due)
        time.sleep(rng.uniform(0.0, 0.5))
        title = family.kill(kind, rng)
        done = finished(folder)
        seen |= {unit: digests(folder, unit) for unit in done - seen.keys()}
        at = time.monotonic() - began
        print(f"{at:6.1f} s  {len(done):4d} of {units} units  kill {number:2d}: {kind} ({title})")
        assert len(done) < units, f"all units were done by kill {number}: make it a larger run"
    return seen
