"""Which engine gets which request: a state machine without I/O, one in every client of a pool.

Requests wait here, not in the engines, and are bound to one when it has room. A waiting request
has a home, the engine that its name hashes to, so that a trajectory's prefixes meet one prefix
cache; an engine with a free slot and no work of its own takes from the longest queue. So nothing is
stuck behind a slow engine, and none idles while another has a queue.

A request whose name has nothing else under way goes before the others. Until it is answered nothing
more can be asked for that name, and engines that are left with the last answers of many names run
half empty.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

HEADROOM = 1.25
"""Sequences handed to an engine, as a share of those it decodes at once: the excess bridges the
way of an answer to the client and of the next request back."""
FAIR, SLACK = 1.25, 4
"""A name goes home while that engine's load is at most `FAIR` times the least plus `SLACK`
requests of its kind."""


@dataclass(frozen=True)
class Load:
    """Work at an engine, or of one request: tokens at most still to come, and sequences."""

    tokens: int = 0
    sequences: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(self.tokens + other.tokens, self.sequences + other.sequences)

    def __sub__(self, other: Load) -> Load:
        return Load(self.tokens - other.tokens, self.sequences - other.sequences)


@dataclass(frozen=True)
class _Waiting:
    number: int
    affinity: str | None
    cost: Load
    first: bool


class _Queue:
    """Waiting requests of one home: those that go first and the others, each as they came."""

    def __init__(self) -> None:
        self._parts: tuple[OrderedDict[int, _Waiting], ...] = (OrderedDict(), OrderedDict())

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[_Waiting]:
        return chain.from_iterable(part.values() for part in self._parts)

    def add(self, request: _Waiting) -> None:
        self._parts[not request.first][request.number] = request

    def drop(self, number: int) -> None:
        for part in self._parts:
            part.pop(number, None)

    @property
    def head(self) -> tuple[int, int]:
        """Orders queues that are not empty by what they would give next."""
        return next((i, next(iter(part))) for i, part in enumerate(self._parts) if part)

    def take(self, last: bool = False) -> _Waiting:
        """The next request, or the one that would come last."""
        parts = self._parts[::-1] if last else self._parts
        return next(part for part in parts if part).popitem(last=last)[1]


class Router:
    """Queues and loads of the engines that one client may use.

    ``slots``: sequences that an engine decodes at once.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._own: dict[int, Load] = {}
        self._elsewhere: dict[int, Load] = {}
        self._down: set[int] = set()
        self._queues: dict[int | None, _Queue] = {None: _Queue()}
        """By home; None is for requests that are at home everywhere."""

    # --- what changes ---------------------------------------------------------------------------

    def set_members(self, engines: Iterable[int]) -> None:
        """The engines there are; the load of those that go is forgotten."""
        members = set(engines)
        if members == self._own.keys():
            return
        self._own = {i: self._own.get(i, Load()) for i in sorted(members)}
        self._down &= members
        self._rehome()

    def set_elsewhere(self, loads: Mapping[int, Load]) -> None:
        """What other clients have at each engine, as far as is known."""
        self._elsewhere = dict(loads)

    def set_down(self, engine: int, down: bool) -> None:
        """Whether an engine cannot be used for now."""
        if engine in self._own and (engine in self._down) != down:
            self._down ^= {engine}
            self._rehome()

    # --- requests -------------------------------------------------------------------------------

    def submit(
        self, number: int, affinity: str | None, cost: Load, first: bool = False
    ) -> int | None:
        """Take a request in; the engine it goes to now, or None: `dispatch` will name it.

        ``first``: its name has nothing else under way.
        """
        request = _Waiting(number, affinity, cost, first)
        home = self._home(affinity)
        if not self._queues.get(home):
            engine = self._pick(home, cost)
            if engine is not None:
                self._own[engine] += cost
                return engine
        self._queues[home].add(request)
        return None

    def dispatch(self, engine: int | None = None) -> list[tuple[int, int]]:
        """Requests that may go now, each with its engine; ``engine``: look at that one only."""
        sent = []
        for index in self._up() if engine is None else [engine]:
            while (request := self._next(index)) is not None:
                self._own[index] += request.cost
                sent.append((request.number, index))
        return sent

    def drop(self, number: int) -> None:
        """Forget a request that waits no longer."""
        for queue in self._queues.values():
            queue.drop(number)

    def finish(self, engine: int, cost: Load) -> None:
        """A request has left its engine, whatever became of it."""
        if engine in self._own:
            left = self._own[engine] - cost
            self._own[engine] = Load(max(0, left.tokens), max(0, left.sequences))

    # --- what there is --------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Sequences of requests that no engine has yet."""
        return sum(request.cost.sequences for queue in self._queues.values() for request in queue)

    @property
    def down(self) -> frozenset[int]:
        return frozenset(self._down)

    def load(self, engine: int) -> Load:
        """Work at an engine, of this client and of others."""
        return self._own[engine] + self._elsewhere.get(engine, Load())

    def own(self, engine: int) -> Load:
        """Work of this client at an engine."""
        return self._own[engine]

    # --- choices --------------------------------------------------------------------------------

    def _up(self) -> list[int]:
        return [i for i in self._own if i not in self._down]

    def _home(self, affinity: str | None) -> int | None:
        up = self._up()
        if affinity is None or not up:
            return None
        # Rendezvous hashing: when an engine goes, only its own names move.
        return max(up, key=lambda i: hashlib.blake2b(f"{i}/{affinity}".encode()).digest())

    def _has_room(self, engine: int) -> bool:
        # One request at least, or clients that came earlier could shut a later one out.
        own = self._own[engine].sequences
        return own == 0 or self.load(engine).sequences < HEADROOM * self._slots

    def _pick(self, home: int | None, cost: Load) -> int | None:
        open_ = [i for i in self._up() if self._has_room(i)]
        if not open_:
            return None
        free = [i for i in open_ if self.load(i).sequences < self._slots]
        idlest = min(free or open_, key=lambda i: (self.load(i).tokens, i))
        if home is not None and home in (free or open_):
            fair = FAIR * self.load(idlest).tokens + SLACK * cost.tokens
            return home if self.load(home).tokens <= fair else idlest
        # Its home is full: it waits for it, unless someone idles.
        return idlest if free or home is None else None

    def _next(self, engine: int) -> _Waiting | None:
        """The next waiting request of an engine that can take one."""
        if engine not in self._own or engine in self._down or not self._has_room(engine):
            return None
        heads = [q for q in (self._queues.get(engine), self._queues[None]) if q]
        if heads:
            return min(heads, key=lambda queue: queue.head).take()
        if self.load(engine).sequences >= self._slots:
            return None
        longest = max(self._queues.values(), key=len)
        # From the end: what is there shares its prefix with what is taken next.
        return longest.take(last=True) if longest else None

    def _rehome(self) -> None:
        waiting = sorted(
            (request for queue in self._queues.values() for request in queue),
            key=lambda request: request.number,
        )
        self._queues = {home: _Queue() for home in (None, *self._own)}
        for request in waiting:
            self._queues[self._home(request.affinity)].add(request)
