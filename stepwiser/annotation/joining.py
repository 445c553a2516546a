"""Which units a cluster takes, where several annotate one run and none knows another.

Nobody has a share. Each takes as much as it will soon work on, so that a faster one takes more; it
goes on where it took last, and where it meets another it goes to the middle of what is longest
untouched, so that they seldom meet. What is left at the end is under way somewhere: a cluster
without work repeats what its owner will need longer for than it will itself. Pure: what owners say
in, choices out; times are seconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

UNIT_LEASES = "leases"
"""Where a run has the leases of its units, and what their owners say."""
AHEAD_S = 5.0
"""Work that is taken before it can be begun: a few requests to a store that is far away."""
RECENT_S = 600.0
"""Seconds that a speed is taken over: several units of a slow cluster."""
UNKNOWN_S = 3600.0
"""What a unit is taken to need before any is done: those that were begun last are left longest."""
RECENT_UNITS = 20
"""Units that the time of one is taken over."""


@dataclass(frozen=True)
class OwnerReport:
    """What a cluster says of itself, now and then."""

    done: int = 0
    """Units that it has finished and that count."""
    per_s: float = 0.0
    """Units a second, over the last minutes."""
    unit_s: float | None = None
    """From a unit's beginning to its end, the mean of the last ones; None before the first."""
    begun: Mapping[str, float] = field(default_factory=dict)
    """Units under way, with the seconds since each was begun, when it said so."""
    waiting: Sequence[str] = ()
    """Taken and not begun yet, the next one first."""

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> OwnerReport:
        """From what `vars` of one has become in JSON; what is missing is as before the work."""
        known = {name: said[name] for name in cls.__dataclass_fields__ if name in said}
        return cls(**known)

    @property
    def held(self) -> set[str]:
        return {*self.begun, *self.waiting}

    @property
    def least_s(self) -> float | None:
        """What one unit alone would take at least: many are under way at a time, and each takes
        longer for that."""
        if self.unit_s is None or not self.per_s:
            return self.unit_s
        return min(self.unit_s, 1 / self.per_s)

    def left_s(self, unit: str, since: float, unit_s: float | None) -> float:
        """Seconds until it is expected to have finished a unit that it holds.

        ``since``: seconds since it said all this; ``unit_s``: what a unit takes, where it has not
        said that.
        """
        known = unit_s if self.unit_s is None else self.unit_s
        usual = UNKNOWN_S if known is None else known
        if unit in self.begun:
            # What is overdue is expected to be so for as long again.
            return abs(usual - self.begun[unit] - since)
        turn = self.waiting.index(unit) + 1
        return usual + (turn / self.per_s if self.per_s else usual) - since


class Speed:
    """How fast units are finished here."""

    def __init__(self, now: float) -> None:
        self.done = 0
        self._began = now
        self._ends: deque[float] = deque()
        self._seconds: deque[float] = deque(maxlen=RECENT_UNITS)

    def finished(self, now: float, seconds: float) -> None:
        """A unit is done that was begun so many seconds ago."""
        self.done += 1
        self._ends.append(now)
        self._seconds.append(seconds)

    def per_s(self, now: float) -> float:
        while self._ends and self._ends[0] <= now - RECENT_S:
            self._ends.popleft()
        return len(self._ends) / max(1e-6, min(RECENT_S, now - self._began))

    @property
    def unit_s(self) -> float | None:
        return sum(self._seconds) / len(self._seconds) if self._seconds else None


def ahead(per_s: float) -> int:
    """Units that are taken before they can be begun, at this speed."""
    return max(1, math.ceil(per_s * AHEAD_S))


def middle_of_longest_run(free: bytes | bytearray) -> int | None:
    """Where the longest run of ones among zeros has its middle; None where there is none."""
    run = bytes(max(free.split(b"\0"), key=len))
    return free.find(run) + len(run) // 2 if run else None


def to_repeat(
    owners: Iterable[tuple[OwnerReport, float]], own: OwnerReport, left: set[str]
) -> str | None:
    """The unit of others whose owner is expected to need longest for it; None where all of them
    will be done sooner than one could be here. A cluster that asks has nothing else to do.

    ``owners``: each with the seconds since it said what it did; ``left``: the units that may be
    repeated.
    """
    best: tuple[float, str] | None = None
    for owner, since in owners:
        here = owner.least_s if own.least_s is None else own.least_s
        for unit in sorted(owner.held & left - own.held):
            expected = owner.left_s(unit, since, own.unit_s)
            if expected > (here or 0.0) and (best is None or expected > best[0]):
                best = expected, unit
    return None if best is None else best[1]
