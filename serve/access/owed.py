"""The answers that a server owes: how long each may take, and what becomes of them at its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from serve.errors import ApiError

LOOK_S = 0.05
"""Between two looks at what is left."""
GIVE_UP_S = 2.0
"""For what was given up to be told so."""


class OwedAnswers:
    """Requests from their first byte to the last one of their answer."""

    def __init__(self) -> None:
        self._open: set[object] = set()
        self._deadlines: set[asyncio.Timeout] = set()
        self._given_up = False

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around one request, until all of its answer is sent."""
        mark = object()
        self._open.add(mark)
        try:
            yield
        finally:
            self._open.discard(mark)

    @asynccontextmanager
    async def within(self, seconds: float) -> AsyncIterator[None]:
        """Around the work of a request, which ends after so many seconds, or with the server.

        Raises ApiError: `deadline_exceeded` (504), or `draining` (503) where it was given up.
        """
        timeout = asyncio.timeout(0.0 if self._given_up else seconds)
        try:
            async with timeout:
                self._deadlines.add(timeout)
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise (_given_up() if self._given_up else deadline_exceeded(seconds)) from None
        finally:
            self._deadlines.discard(timeout)

    async def finish(self, patience_s: float) -> int:
        """Wait for what is owed now and tell what is not done by then that it is given up; returns
        how much that was.

        Whatever comes later is not waited for: it is the caller's to refuse.
        """
        owed = set(self._open)
        await self._wait(owed, patience_s)
        left = len(owed & self._open)
        if left:
            self._given_up = True
            now = asyncio.get_running_loop().time()
            for timeout in self._deadlines:
                if not timeout.expired():
                    timeout.reschedule(now)
            await self._wait(owed, GIVE_UP_S)
        return left

    async def _wait(self, owed: set[object], seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while owed & self._open and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(LOOK_S)


def deadline_exceeded(seconds: float) -> ApiError:
    """The error of a request that was not done in time."""
    return ApiError(
        "deadline_exceeded",
        f"not done within {seconds:g} s, and given up; send fewer or shorter steps, or try later",
    )


def _given_up() -> ApiError:
    return ApiError(
        "draining",
        "this server ends, and gave the request up after serve.drain_s: send it elsewhere",
        retry_after_s=5,
    )
