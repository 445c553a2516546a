"""What the processes of a run take while it goes on: CPU time and memory, second by second."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Self

import psutil

from stepwiser.run.periodic import repeating

SAMPLE_S = 1.0
DRIVER = "driver"


@dataclass(frozen=True)
class Moment:
    """What was seen at one time."""

    seconds: float
    done: int
    """How much of the work was finished."""
    cpu: dict[str, float]
    """CPU seconds so far, by role of the process."""
    memory: dict[str, int]
    """Resident bytes, by role; the largest where several have one."""
    yardstick: float
    """CPU seconds of a fixed piece of work."""

    @property
    def cpu_seconds(self) -> float:
        return sum(self.cpu.values())


class ProcessMonitor:
    """Notes the processes of this program while a run goes on, and how far it is.

    ``finished`` tells how much of the work is done.
    """

    def __init__(self, finished: Callable[[], int]) -> None:
        self.moments: list[Moment] = []
        self._finished = finished
        self._spent: dict[int, tuple[str, float]] = {}
        self._me = psutil.Process()
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._exits.enter_context(repeating(self._look, SAMPLE_S))
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()
        self._look()

    def _look(self) -> None:
        memory: dict[str, int] = {}
        for process in [self._me, *self._me.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                name = DRIVER if process == self._me else role(process.cmdline())
                times = process.cpu_times()
                # Of a process that has ended, what it had last: its time was spent all the same.
                self._spent[process.pid] = (name, times.user + times.system)
                memory[name] = max(memory.get(name, 0), process.memory_info().rss)
        cpu: dict[str, float] = {}
        for name, seconds in self._spent.values():
            cpu[name] = cpu.get(name, 0.0) + seconds
        now, done = time.monotonic(), self._finished()
        self.moments.append(Moment(now, done, cpu, memory, measure_yardstick()))


def memory_growth(first: Sequence[Moment], last: Sequence[Moment]) -> dict[str, float]:
    """Mean memory by role in the last moments over that in the first, of roles seen in both."""
    ratios = {}
    for name in sorted({name for m in last for name in m.memory}):
        early = [m.memory[name] for m in first if name in m.memory]
        late = [m.memory[name] for m in last if name in m.memory]
        if early:
            ratios[name] = mean(late) / mean(early)
    return ratios


def peak_memory(moments: Sequence[Moment]) -> dict[str, float]:
    """The most that a process of each role had, in MB."""
    roles = sorted({name for m in moments for name in m.memory})
    return {name: max(m.memory.get(name, 0) for m in moments) / 1e6 for name in roles}


def measure_yardstick() -> float:
    """CPU seconds of a few milliseconds' work in plain Python, as most of annotation's is."""
    began = time.thread_time()
    sum(len(str(number)) for number in range(20_000))
    return time.thread_time() - began


def role(command: Sequence[str]) -> str:
    """What a process of Ray's is: the class of an actor, or the name of a daemon."""
    program = command[0] if command else "unknown"
    if program.startswith("ray::"):
        return program.removeprefix("ray::").partition(".")[0]
    script = next((word for word in command[1:3] if word.endswith(".py")), program)
    return Path(script).name
