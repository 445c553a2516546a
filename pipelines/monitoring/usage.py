"""What a stage costs: seconds, tokens, and the memory of every process of the run."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil

from stepwiser.run.periodic import repeating

SECONDS_BETWEEN_SAMPLES = 2.0
SUMMED = ("seconds", "generated_tokens", "prompt_tokens", "trained_tokens", "gpu_hours")
"""Fields of `Usage` that add up over the starts of a stage."""


@dataclass
class Usage:
    """Cost of one stage."""

    stage: str
    seconds: float = 0.0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    trained_tokens: int = 0
    peak_memory_gb: float = 0.0
    cpus: float = 0.0
    gpus: float = 0.0
    """As planned; engines may come and go meanwhile."""
    gpu_hours: float = 0.0
    """What engines really held, and by plan what the other roles held."""

    def plus(self, earlier: dict[str, Any] | None) -> Usage:
        """Together with the cost of an earlier start of the same stage, if there was one."""
        if not earlier:
            return self
        sums = {name: getattr(self, name) + earlier[name] for name in SUMMED}
        peak = max(self.peak_memory_gb, earlier["peak_memory_gb"])
        return replace(self, **sums, peak_memory_gb=peak)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def memory_of_run() -> int:
    """Resident bytes of this process and all its descendants, pages they share counted once.

    A local Ray is a child of the driver, so its daemons and workers are among them.
    """
    total = shared = 0
    me = psutil.Process(os.getpid())
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            info = process.memory_info()
            total += info.rss - info.shared
            shared = max(shared, info.shared)
    return total + shared


@contextlib.contextmanager
def metered(usage: Usage) -> Iterator[None]:
    """Count the block's seconds and its largest memory, sampled meanwhile, into ``usage``."""

    def sample() -> None:
        usage.peak_memory_gb = max(usage.peak_memory_gb, memory_of_run() / 1e9)

    started = time.monotonic()
    sample()
    try:
        with repeating(sample, SECONDS_BETWEEN_SAMPLES):
            yield
    finally:
        usage.seconds = time.monotonic() - started
