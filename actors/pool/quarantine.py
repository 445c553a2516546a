"""Who may be in an engine together, once engines die under a request.

A request that ends every engine it meets takes all others along that are in those engines, and when
they are tried again together, again and again. Nobody can tell from outside which of them it was.
So a request that lost an engine a second time shares one with fewer, then with none; one that is
alone in an engine that dies, and dies again, is the one. The others come through: they share an
engine with it a few times at most, and no loss counts against them that they shared. No I/O, no
Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

UNLIMITED = 1_000_000_000
ISOLATION = (UNLIMITED, UNLIMITED, 16)
"""Requests that may be in an engine with one that has lost so many engines, itself included; after
more losses it is alone. The first loss says nothing: machines are preempted and processes killed.
"""
MAX_ISOLATED_LOSSES = 2
"""Engines that a request may lose while it is alone in them."""


@dataclass
class RequestHistory:
    """The engines that one request has lost."""

    losses: int = 0
    alone: int = 0
    """Of those, engines that held no other request."""

    @property
    def max_concurrent(self) -> int:
        """How many requests may be where this one goes, itself included."""
        return ISOLATION[self.losses] if self.losses < len(ISOLATION) else 1

    def lost(self) -> None:
        """An engine died with the request in it."""
        self.alone += self.max_concurrent == 1
        self.losses += 1

    def __str__(self) -> str:
        return f"ended {self.losses} engines, {self.alone} of them with no other request in them"

    @property
    def is_poison(self) -> bool:
        """It ends engines, whatever it meets."""
        return self.alone >= MAX_ISOLATED_LOSSES


class QuarantineGate:
    """The requests inside an engine: first come first in, as far as those inside allow."""

    def __init__(self) -> None:
        self._inside = 0
        self._limits: Counter[int] = Counter()
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def join(self, most: int = UNLIMITED) -> AsyncIterator[None]:
        """Inside the block at most ``most`` requests are inside, this one included."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((most, turn))
        self._admit()
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._leave(most)  # cancelled between its turn and the news of it
            raise
        try:
            yield
        finally:
            self._leave(most)

    def _leave(self, most: int) -> None:
        self._inside -= 1
        self._limits[most] -= 1
        if not self._limits[most]:
            del self._limits[most]
        self._admit()

    def _admit(self) -> None:
        # In order: a later one that would fit must not keep an earlier one out for ever.
        while self._queue:
            most, turn = self._queue[0]
            if not turn.done():
                if self._inside >= min([most, *self._limits]):
                    return
                self._inside += 1
                self._limits[most] += 1
                turn.set_result(None)
            self._queue.popleft()
