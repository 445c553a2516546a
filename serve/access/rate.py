"""How often a key may ask."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

WINDOW_S = 60.0


class RateLimit:
    """Counts what each client has asked for in the last 60 seconds, exactly."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._taken: defaultdict[str, deque[float]] = defaultdict(deque)

    def take(self, client: str, per_minute: int, count: int = 1) -> float:
        """Count ``count`` solutions; 0, or the seconds until there is room and none is counted.

        More than ``per_minute`` at once has never room: infinity.
        """
        now, taken = self._clock(), self._taken[client]
        while taken and taken[0] <= now - WINDOW_S:
            taken.popleft()
        over = len(taken) + count - per_minute
        if over <= 0:
            taken.extend([now] * count)
            return 0.0
        if over > len(taken):
            return float("inf")
        return taken[over - 1] + WINDOW_S - now
