"""Units of a run taken by leases, so that any number of starts can work on it, on any cluster.

Every start takes its units so, also one that is alone: the first cannot know who will come. What
counts once is the unit's summary (`stepwiser/run/units.py`); a lease only saves double work.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from stepwiser.annotation.joining import (
    AHEAD_S,
    UNIT_LEASES,
    OwnerReport,
    Speed,
    ahead,
    middle_of_longest_run,
    to_repeat,
)
from stepwiser.errors import UserError
from stepwiser.run.periodic import repeating
from stepwiser.run.store import RunStore
from stepwiser.run.units import BY, finished_among, read_summary
from stepwiser.storage.lease import AT_ONCE, SILENT_S, Leases, at_once, new_owner

AGAIN = "again/"
"""Before the name of a unit that another has and one repeats: no third one does."""
LOOK_S = 20.0
"""Between two looks at what others do, and a second more for each 500 units that are left, since a
look costs a request for a thousand; less where others do much of what is left in that time."""
TAIL_S = 3.0
"""The same when nothing is free any more."""
MISSED_S = 2.0
"""The same after a unit that was another's: what is known is old."""
MOST_AHEAD = 64
"""Units that are asked for at once where engines wait for work."""


class UnitLeases:
    """What one start takes of a run's units, and what it knows of the others.

    `take` blocks and is called by one thread at a time, `renew` by another; the rest is quick.
    """

    def __init__(
        self,
        leases: Leases,
        units: Sequence[str],
        finished: Callable[[set[str]], set[str]],
        writer: Callable[[str], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``finished``: which of some units are done, whoever did them; ``writer``: who did one
        that is."""
        self._leases, self._finished, self._writer = leases, finished, writer
        self._clock = clock
        self._order = list(units)
        self._free = bytearray(b"\1" * len(self._order))
        """By place: neither done nor anybody's, as far as is known."""
        self._cursor = 0
        self._left = set(units)
        self._waiting: deque[str] = deque()
        self._begun: dict[str, float] = {}
        self._repeats: set[str] = set()
        self._ended: list[str] = []
        self._elsewhere: list[str] = []
        self._beats: dict[str, tuple[int, float]] = {}
        """By name of an owner: its last beat, and since when that is known."""
        self._refused: dict[str, tuple[str, float]] = {}
        """Units that were another's when they were asked for: whose, and when."""
        self._living: list[tuple[OwnerReport, float]] = []
        self._speed = Speed(clock())
        self._want = 1
        self._hungry = -math.inf
        self._looked: float | None = None
        self._missed = self._astray = False
        """What is known is old; the next units are others'."""
        self._lock = threading.Lock()

    # --- what the dispatch asks -------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Every unit is done, here or elsewhere."""
        return not self._left

    @property
    def wanted(self) -> bool:
        """Whether `take` has something to do although there is no room: to take ahead, or to look
        at what others do."""
        return len(self._waiting) < self._want or self._due(self._clock())

    def take(self, hungry: bool) -> list[str]:
        """Units that are this start's from now on, in the order in which they are to be begun.

        ``hungry``: there is room for work, and nothing to begin.
        """
        self._end_leases()
        now = self._clock()
        if self._due(now):
            self._look()
        self._want = self._ahead(now, hungry)
        found: list[str] = []
        while (room := self._want - len(self._waiting)) > 0:
            units = self._next_free(min(room, AT_ONCE))
            for unit, holder in zip(units, at_once(self._leases.claim, units), strict=True):
                if holder == self._leases.owner:
                    found.append(unit)
                    with self._lock:
                        self._waiting.append(unit)  # before the next look, which would free it
                else:
                    self._refused[unit] = holder, self._clock()
                    self._missed = self._astray = True
            if not units:
                break
            if self._missed and self._due(self._clock()):
                self._look()  # better than to ask for one after the other
        if hungry and not found and 1 not in self._free and not self.over:
            found = self._repeat()
            with self._lock:
                self._waiting.extend(found)
        return found

    def begin(self, unit: str) -> bool:
        """Whether a unit that was taken is still to be done here; it is under way then."""
        with self._lock:
            if unit not in self._waiting:
                return False
            self._waiting.remove(unit)
            self._begun[unit] = self._clock()
        return True

    def finished(self, unit: str, *, elsewhere: bool = False) -> None:
        """A unit that was begun is done; ``elsewhere``: by another, which was faster."""
        now = self._clock()
        with self._lock:
            began = self._begun.pop(unit, now)
            self._ended.append(unit)
            if elsewhere:
                # There is more that nobody here knows of yet.
                self._missed = self._astray = True
            else:
                self._speed.finished(now, now - began)
            if unit in self._left:
                self._left.discard(unit)
                if elsewhere:
                    self._elsewhere.append(unit)

    def news(self) -> list[str]:
        """Units that others have done since this was asked last."""
        return self._pop(self._elsewhere)

    @property
    def done(self) -> int:
        """Units that this start has finished and that count."""
        return self._speed.done

    @property
    def share(self) -> float:
        """Of all speed, what is this start's."""
        own = self._speed.per_s(self._clock())
        others = sum(owner.per_s for owner, _ in self._living)
        return own / (own + others) if own else 1.0 / (1 + len(self._living))

    # --- life -------------------------------------------------------------------------------------

    def report(self) -> OwnerReport:
        """What is said of this start."""
        now = self._clock()
        with self._lock:
            return OwnerReport(
                self._speed.done,
                self._speed.per_s(now),
                self._speed.unit_s,
                {unit: now - began for unit, began in self._begun.items()},
                tuple(self._waiting),
            )

    def renew(self) -> None:
        """Say that this start lives."""
        self._leases.renew(vars(self.report()))

    def leave(self) -> None:
        """Give back what is not done, at once; when all is done, take away what the dead left."""
        self._end_leases()
        self._leases.leave()
        if self.over:
            self._leases.clear()

    # --- within -----------------------------------------------------------------------------------

    def _ahead(self, now: float, hungry: bool) -> int:
        """Units to have waiting: by the speed, and twice as many each time that ran out at once, as
        at the beginning, when many engines begin and none has a speed."""
        lately = now - self._hungry < AHEAD_S
        if hungry:
            self._hungry = now
        more = (2 * self._want if hungry else self._want) if lately else 1
        return max(ahead(self._speed.per_s(now)), min(more, MOST_AHEAD))

    def _end_leases(self) -> None:
        ended = self._pop(self._ended)
        again = [AGAIN + unit for unit in ended if unit in self._repeats]
        at_once(self._leases.end, [*ended, *again])

    def _pop(self, units: list[str]) -> list[str]:
        with self._lock:
            found = list(units)
            units.clear()
        return found

    def _due(self, now: float) -> bool:
        if self._looked is None:
            return True
        pause = max(LOOK_S, len(self._left) / 500)
        if per_s := sum(owner.per_s for owner, _ in self._living):
            # What others do in that time is to be a small part of what is left.
            left_s = len(self._left) / (per_s + self._speed.per_s(now))
            pause = min(pause, max(TAIL_S, left_s / 20))
        if self._missed:
            pause = min(pause, max(MISSED_S, pause / 10))
        if 1 not in self._free:
            pause = TAIL_S
        return now - self._looked >= pause

    def _look(self) -> None:
        """See what is done, and who is at what."""
        others = self._leases.others()
        with self._lock:
            left, begun = set(self._left), set(self._begun)
        done = self._finished(left)
        # Of one that is under way here the answer may be on its way.
        done -= {unit for unit in done & begun if self._writer(unit) == self._leases.owner}
        now = self._clock()
        living = [
            self._heard(name, said, now)
            for name, said in others.items()
            if self._leases.lives(name)
        ]
        held = set[str]().union(*(report.held for report, _ in living))
        first = self._looked is None
        with self._lock:
            self._living = living
            self._elsewhere += [unit for unit in done if unit in self._left]
            self._left -= done
            # One that this start has not begun, and another is at, is left to that one.
            at = {unit for report, _ in living for unit in report.begun}
            dropped = {
                u for u in self._waiting if u in done or (u in at and u not in self._repeats)
            }
            self._waiting = deque(unit for unit in self._waiting if unit not in dropped)
            taken = held | self._begun.keys() | set(self._waiting)
            for place, unit in enumerate(self._order):
                self._free[place] = unit in self._left and unit not in taken
            self._looked, self._missed = now, False
        for unit in dropped - done:
            self._leases.give_back(unit)
        for unit in dropped & done:
            self._leases.end(unit)
        self._astray = self._astray or (first and bool(others))
        if living:
            self.renew()  # they look as often

    def _heard(self, name: str, said: Mapping[str, Any], now: float) -> tuple[OwnerReport, float]:
        """What an owner says it does, with what it has taken since, and how old that is."""
        beat, report = int(said["beat"]), OwnerReport.parse(said)
        before = self._beats.get(name)
        since = before[1] if before and before[0] == beat else now
        self._beats[name] = beat, since
        begun = dict(report.begun)
        for unit, (holder, when) in list(self._refused.items()):
            if holder == name and unit not in report.held:
                if when < since:
                    del self._refused[unit]  # it has spoken since, and not of this
                else:
                    begun[unit] = since - when
        return replace(report, begun=begun), now - since

    def _next_free(self, count: int) -> list[str]:
        """At most so many, after the last ones; where those were others', in the middle of what
        nobody has touched."""
        if self._astray:
            self._cursor, self._astray = middle_of_longest_run(self._free) or 0, False
        units: list[str] = []
        while len(units) < count:
            place = self._free.find(1, self._cursor)
            place = place if place >= 0 else self._free.find(1)
            if place < 0:
                break
            self._free[place] = 0
            self._cursor = place + 1
            units.append(self._order[place])
        return units

    def _repeat(self) -> list[str]:
        """A unit of another that is expected to be done sooner here; at most one."""
        own, tried = self.report(), set(self._repeats)
        while True:
            with self._lock:
                left = self._left - tried
            unit = to_repeat(self._living, own, left)
            if unit is None:
                return []
            tried.add(unit)
            if self._leases.claim(AGAIN + unit) == self._leases.owner:
                self._repeats.add(unit)
                return [unit]


class UnitSource:
    """`UnitLeases` for a loop that must not wait: where the dispatch takes units from."""

    def __init__(self, leases: UnitLeases, elsewhere: Callable[[list[str]], None]) -> None:
        """``elsewhere``: told the units that others have done."""
        self._leases, self._tell = leases, elsewhere

    def begin(self, unit: str) -> bool:
        return self._leases.begin(unit)

    @property
    def over(self) -> bool:
        return self._leases.over

    @property
    def wanted(self) -> bool:
        return self._leases.wanted

    async def take(self, hungry: bool) -> list[str]:
        """Units to begin; none after a pause, where there is none now."""
        found = await asyncio.to_thread(self._leases.take, hungry)
        if news := self._leases.news():
            self._tell(news)
        if not found and not self.over:
            await asyncio.sleep(TAIL_S / 3)
        return found


@contextmanager
def unit_leases(
    store: RunStore, units: Sequence[str], warn: Callable[[str], None]
) -> Iterator[tuple[UnitLeases, Leases]]:
    """Be one of those who annotate these units, as long as the block lasts."""
    leases = Leases(store.storage, UNIT_LEASES, new_owner())
    held = UnitLeases(
        leases,
        units,
        lambda left: finished_among(store, left),
        lambda unit: str(read_summary(store, unit).get(BY, "")),
    )
    held.renew()

    def renew() -> None:
        try:
            held.renew()
        except UserError as error:  # the next one may succeed; what counts does not hang on it
            warn(f"others may take this start for dead: {error}")

    with repeating(renew, SILENT_S / 3, "unit-leases"):
        try:
            yield held, leases
        finally:
            held.leave()
