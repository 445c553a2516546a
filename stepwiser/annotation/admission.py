"""How many problems may be in flight: enough that no engine idles, no more than its cache holds.

A problem asks for little at first (its responses) and then for thousands of rollouts at once, so no
fixed number is right: too few problems leave engines idle between those bursts, too many pile up
work that a kill loses, and fill the KV cache until vLLM throws sequences out and computes them
again. So the limit follows what the engines report: it grows while they have room, doubling until
they first had none (cold start) and by one a look after that, and shrinks by a quarter when they
have too much; between the two marks it rests. Pure: readings in, limits out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

COLD_START = 4
"""Problems of the first engine before anything is known, at least."""
FEWEST = 2
"""Problems of an engine at least: one alone would leave it idle while its last samples end."""
KV_LOW, KV_HIGH = 0.80, 0.95
"""Share of the KV cache in use: below the first there is room, above the second vLLM is about to
preempt. The gap keeps the limit from swinging with every look."""
WAITING_LOW, WAITING_HIGH = 0.25, 4.0
"""Waiting sequences as a share of those decoded at once. Below the first an engine may run dry
before the next look; above the second the wait is longer than four whole batches."""
SHRINK = 0.75
SETTLE = 5
"""Looks to wait after a cut: problems in flight must end before it shows."""
SPENT = 0.75
"""A limit grows only when this share of it is used, or it would grow without end at the tail."""


@dataclass(frozen=True)
class Reading:
    """What one engine reports; a client's own queue counts as waiting."""

    sequences_running: int
    sequences_waiting: int
    max_num_seqs: int
    """Sequences that the engine decodes at once."""
    kv_usage: float | None = None
    """Share of the KV cache in use; None when not known, and then only the others count."""


@dataclass(frozen=True)
class Limit:
    """Problems that one engine may hold, and how that number moves."""

    problems: int = COLD_START
    cold: bool = True
    """Still doubling: no look has found the engine full yet."""
    rest: int = 0
    """Looks until the limit may move again."""


def is_full(reading: Reading) -> bool:
    """Whether an engine has more than it can use."""
    if reading.sequences_waiting > WAITING_HIGH * reading.max_num_seqs:
        return True
    # A full cache with nothing waiting is an engine that is used well.
    kv = reading.kv_usage or 0.0
    return kv > KV_HIGH and reading.sequences_waiting > 0


def has_room(reading: Reading) -> bool:
    """Whether an engine could use more than it has."""
    kv = reading.kv_usage or 0.0
    return kv < KV_LOW and reading.sequences_waiting < WAITING_LOW * reading.max_num_seqs


def look(limit: Limit, reading: Reading, in_flight: float) -> Limit:
    """The limit after one look; ``in_flight`` is the engine's share of the problems under way."""
    rest = max(0, limit.rest - 1)
    if is_full(reading):
        if limit.rest:
            return replace(limit, cold=False, rest=rest)
        # From what is there, when that is less than what was allowed.
        used = min(limit.problems, max(in_flight, FEWEST))
        return Limit(max(FEWEST, int(used * SHRINK)), cold=False, rest=SETTLE)
    spent = in_flight >= SPENT * limit.problems
    if limit.rest or not spent or not has_room(reading):
        cold = limit.cold and reading.sequences_waiting < WAITING_LOW * reading.max_num_seqs
        if cold == limit.cold and rest == limit.rest:  # as most looks of a thousand engines end
            return limit
        return replace(limit, cold=cold, rest=rest)
    more = limit.problems if limit.cold else 1
    # Every problem has one sequence at least: more of them than this could only wait.
    most = max(FEWEST, int(reading.max_num_seqs * (1 + WAITING_HIGH)))
    return replace(limit, problems=min(limit.problems + more, most))


class Admission:
    """The limits of all engines; those that come start with what the others have learnt.

    ``width``: sequences that a problem asks for at first. The first engines start with as many
    problems as fill their slots so: an engine that has room for longer than a look is time lost,
    and no problem has filled a cache by then.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self.limits: dict[int, Limit] = {}

    @property
    def problems(self) -> int:
        """Problems that may be in flight on all engines together."""
        return sum(limit.problems for limit in self.limits.values())

    def observe(self, readings: Mapping[int, Reading], in_flight: int) -> int:
        """Take one look at every engine; returns the problems that may be in flight from now on.

        An engine without a reading has left. Called at even intervals, about a second.
        """
        known = [limit.problems for limit in self.limits.values()]
        share = in_flight / max(1, len(self.limits))

        def first(reading: Reading) -> Limit:
            if known:
                return Limit(round(sum(known) / len(known)), cold=False)
            return Limit(max(COLD_START, reading.max_num_seqs // self._width))

        self.limits = {
            index: look(self.limits[index], reading, share)
            if index in self.limits
            else first(reading)
            for index, reading in sorted(readings.items())
        }
        return self.problems
