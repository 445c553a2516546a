"""Processes that were ended for want of memory: what is said of them, and when enough is enough."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_KILLS = 3
WINDOW_S = 3600.0
"""A run ends when one thing was killed so often within so long: it will not fit the next time."""

KIND = "kill"
"""What a kill's line is called in metrics.jsonl."""

RAY, KERNEL = "Ray's memory monitor", "the kernel"

NAMES = {
    "RolloutGenerator": "engine",
    "RayTrainWorker": "learner",
    "MonteCarloLabeler": "labeler",
    "ExperienceCollector": "collector",
    "EngineRegistry": "registry",
    "Evaluator": "evaluator",
    "TrainController": "training controller",
    "JudgeServer": "replica",
}
"""By the class of the actor."""

REMEDIES = {
    "engine": "lower engine.kv_cache_mb, engine.max_num_seqs or engine.count",
    "replica": "lower engine.kv_cache_mb, engine.max_num_seqs or serve.replicas",
    "learner": "lower learner.max_tokens_per_microbatch, or set learner.precision=bfloat16 or "
    "learner.gradient_checkpointing=true",
}
"""What a person can do about it; of everything else there is too little beside engines and
learners."""
OTHERWISE = "leave more memory beside the engines and learners: lower engine.count"


@dataclass(frozen=True)
class MemoryKill:
    """One process that was ended."""

    process: str
    """As a person calls it."""
    pid: int
    size: int | None
    """Bytes that it had; None where nobody looked in time."""
    by: str
    node: str
    """Address of its machine."""

    @property
    def remedy(self) -> str:
        return REMEDIES.get(self.process, OTHERWISE)

    @property
    def words(self) -> str:
        """One sentence, without the remedy."""
        size = "unknown size" if self.size is None else f"{self.size / 1e9:.1f} GB"
        return (
            f"the {self.process} (process {self.pid} on {self.node}, {size}) was killed by "
            f"{self.by}, as the machine ran out of memory"
        )

    def row(self, stage: str) -> dict[str, str | int | None]:
        """Its line in metrics.jsonl."""
        return {"stage": stage, **vars(self), "remedy": self.remedy}


class KillCount:
    """How often each thing was killed. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._all: Counter[str] = Counter()
        self._recent: dict[str, deque[float]] = {}
        self.last: MemoryKill | None = None

    def add(self, kill: MemoryKill, now: float) -> str:
        """Take one in; returns what to tell of it."""
        self.last = kill
        self._all[kill.process] += 1
        recent = self._recent.setdefault(kill.process, deque())
        recent.append(now)
        while recent[0] <= now - WINDOW_S:
            recent.popleft()
        return f"{kill.words}, for the {ordinal(self._all[kill.process])} time: {kill.remedy}"

    @property
    def enough(self) -> str | None:
        """Why the run should end, once one thing was killed too often."""
        for process, recent in self._recent.items():
            if len(recent) >= MAX_KILLS:
                return f"the {process} was killed {len(recent)} times for want of memory"
        return None

    @property
    def account(self) -> str | None:
        """All of them in one sentence with the remedy of the last; None where there was none."""
        if self.last is None:
            return None
        parts = ", ".join(f"{process} {count} ×" for process, count in self._all.items())
        return f"killed for want of memory: {parts}; at last {self.last.words}: {self.last.remedy}"


def kill_notices(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence for each thing that was killed, from the kills' lines in metrics.jsonl."""
    by_process: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_process.setdefault(str(row.get("process")), []).append(row)
    notices = []
    for process, kills in by_process.items():
        sizes = [kill["size"] for kill in kills if isinstance(kill.get("size"), int)]
        largest = f", at {max(sizes) / 1e9:.1f} GB at most" if sizes else ""
        whose = ", ".join(sorted({str(kill.get("by")) for kill in kills}))
        stages = ", ".join(dict.fromkeys(str(kill.get("stage")) for kill in kills))
        notices.append(
            f"{process}: killed {len(kills)} × for want of memory by {whose} in {stages}{largest}. "
            f"To do: {kills[-1].get('remedy')}"
        )
    return notices


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th …"""
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}" + {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
