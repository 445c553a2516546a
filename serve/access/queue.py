"""A bounded queue in front of the replicas that is fair between clients.

Judging at once as much as the replicas hold, and waiting a bounded time for the rest, keeps the
throughput at its plateau however many ask: what there is no room for is told so at once, instead of
running into its deadline after it has cost prompt and tokens.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from serve.errors import ApiError

LONGEST_WAIT_S = 60.0
"""Most that a client is told to wait."""
_REMEMBERED = 64


class FairQueue:
    """Places for what is judged now, and a line for each client that waits for one.

    A free place goes to the clients in turn, so one that sends a thousand requests delays its own
    and not those of others. A full queue takes the newest of the longest line back where a client
    with a shorter one comes.
    """

    def __init__(
        self, places: int, max_waiting: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.places = places
        self.max_waiting = max_waiting
        self.closed = False
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._limits: dict[str, int | None] = {}
        # In the order of their turns.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._finished: deque[float] = deque(maxlen=_REMEMBERED)
        self._next_turn = 0.0

    @property
    def running(self) -> int:
        return self._running.total()

    @property
    def waiting(self) -> int:
        return sum(len(line) for line in self._waiting.values())

    @asynccontextmanager
    async def place(self, client: str, limit: int | None = None) -> AsyncIterator[None]:
        """Hold a place while the body runs; ``limit``: places that this client may hold at a time.

        Raises ApiError `overloaded` (429) where the queue is full, `draining` (503) where the
        server is about to end.
        """
        await self._enter(client, limit)
        try:
            yield
        finally:
            self._finished.append(self._clock())
            self._leave(client)

    def close(self) -> None:
        """Let nobody in any more; those who wait stay."""
        self.closed = True

    def refuse_unless_room(self, client: str, count: int) -> None:
        """Raise as `place` does where ``count`` requests of a client cannot all wait or run."""
        if self.closed:
            raise _draining()
        room = self.places + self.max_waiting - self.running - self.waiting
        if count > self.places + self.max_waiting:
            raise ApiError(
                "invalid_request",
                f"items: has {count} solutions, and this server holds "
                f"{self.places + self.max_waiting} at a time: split the batch",
                "items",
            )
        if count > room:
            raise self._overloaded(f"there is room for {room} of {count} solutions")

    def seconds_to_wait(self) -> float:
        """For one that is refused: until half of the line is gone, and the refused before it.

        By the rate of the last requests. Those who are refused together thus come back one after
        the other, as fast as places become free, and not all at once to be refused again.
        """
        now, finished = self._clock(), self._finished
        if len(finished) < 2 or finished[-1] == finished[0]:
            return 1.0
        each = (finished[-1] - finished[0]) / (len(finished) - 1)
        latest = now + LONGEST_WAIT_S
        self._next_turn = min(latest, max(now + self.waiting / 2 * each, self._next_turn + each))
        return max(1.0, self._next_turn - now)

    # --- places -----------------------------------------------------------------------------------

    async def _enter(self, client: str, limit: int | None) -> None:
        if self.closed:
            raise _draining()
        self._limits[client] = limit
        if client not in self._waiting and self._may_run(client):
            self._running[client] += 1
            return
        if self.waiting >= self.max_waiting:
            self._make_room(client)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled() or future.exception() is not None:
                self._forget(client, future)
            else:  # given a place in the same moment
                self._leave(client)
            raise

    def _may_run(self, client: str) -> bool:
        limit = self._limits[client]
        own = limit is None or self._running[client] < limit
        return own and self.running < self.places

    def _make_room(self, client: str) -> None:
        mine = len(self._waiting.get(client, ()))
        longest = max(self._waiting, key=lambda other: len(self._waiting[other]))
        if len(self._waiting[longest]) <= mine + 1:
            raise self._overloaded(f"{self.waiting} requests wait already")
        newest = self._waiting[longest].pop()
        if not newest.done():  # cancelled, and not yet taken out
            newest.set_exception(self._overloaded("others who sent fewer go first"))

    def _leave(self, client: str) -> None:
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._admit()

    def _admit(self) -> None:
        """Give free places to those who wait, one a turn."""
        moved = True
        while moved and self.running < self.places:
            moved = False
            for client in list(self._waiting):
                if not self._may_run(client):
                    continue
                line = self._waiting.pop(client)
                future = line.popleft()
                if line:
                    self._waiting[client] = line  # behind the others
                moved = True
                if not future.done():  # cancelled, and not yet taken out
                    self._running[client] += 1
                    future.set_result(None)

    def _forget(self, client: str, future: asyncio.Future[None]) -> None:
        line = self._waiting.get(client)
        if line is not None and future in line:
            line.remove(future)
            if not line:
                del self._waiting[client]

    def _overloaded(self, why: str) -> ApiError:
        seconds = self.seconds_to_wait()
        return ApiError(
            "overloaded",
            f"the server is full: {why}; send the request again in {seconds:.0f} s",
            retry_after_s=seconds,
        )


def _draining() -> ApiError:
    return ApiError(
        "draining", "this server is about to stop: send the request elsewhere", retry_after_s=5
    )
