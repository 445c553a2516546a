"""The prefixes of a problem's trajectories, and what came of their completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepwiser.annotation.values import RolloutCounts
from stepwiser.data.records import Trajectory

Prefix = tuple[int, ...]
"""Leading ids of a response, up to and with the closing tag of a chunk."""


@dataclass(frozen=True)
class Rollouts:
    """What the completions of one prefix came to so far."""

    successes: int
    trials: int
    """Completions that could be checked."""
    truncated: int
    unverifiable: int
    """Further ones, which say nothing about the value."""
    tokens: int
    first_successes: int
    """In the first wave alone."""
    first_trials: int

    def __add__(self, wave: Rollouts) -> Rollouts:
        """With a further wave; the first of which something is known stays the first."""
        first = self if self.first_trials else wave
        return Rollouts(
            successes=self.successes + wave.successes,
            trials=self.trials + wave.trials,
            truncated=self.truncated + wave.truncated,
            unverifiable=self.unverifiable + wave.unverifiable,
            tokens=self.tokens + wave.tokens,
            first_successes=first.first_successes,
            first_trials=first.first_trials,
        )

    def counted(self, planned: int) -> RolloutCounts | None:
        """Of the ``planned`` completions those that count; None where none could be checked."""
        left = planned - self.unverifiable
        return RolloutCounts(self.successes, self.trials, left) if left > 0 else None


class PrefixTable:
    """The distinct prefixes of the trajectories of one problem.

    All chunks have one but the last, which holds the answer.
    """

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        self.trajectories = trajectories
        keys: dict[Prefix, int] = {}
        self.of = [
            [
                keys.setdefault(tuple(trajectory.response_ids[:end]), len(keys))
                for end in trajectory.chunk_ends[:-1]
            ]
            for trajectory in trajectories
        ]
        """For each trajectory the prefixes of its chunks, as positions in `ids`."""
        self.ids = list(keys)

    def users(self, key: int) -> set[int]:
        """Trajectories that contain a prefix."""
        return {t for t, keys in enumerate(self.of) if key in keys}
