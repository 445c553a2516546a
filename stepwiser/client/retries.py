"""How long one request is tried, and how long to wait between two tries."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stepwiser.client.errors import JudgeError, deadline_exceeded

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0
"""Between two tries where the server names no time; each is up to twice the one before."""


@dataclass
class Budget:
    """Of one request, all its tries and pauses together."""

    address: str
    deadline_s: float
    retries: int
    """Tries after the first one for faults whose end the server does not name."""
    clock: Callable[[], float] = time.monotonic
    _began: float = field(init=False)
    _blind: int = 0
    _last: JudgeError | None = None

    def __post_init__(self) -> None:
        self._began = self.clock()

    @property
    def left_s(self) -> float:
        return max(0.0, self._began + self.deadline_s - self.clock())

    @property
    def exceeded(self) -> JudgeError:
        """The error of a request whose time is up."""
        return deadline_exceeded(self.address, self.deadline_s, self._last)

    def pause_s(self, error: JudgeError) -> float:
        """Seconds to wait before the next try.

        The server's own time counts where it names one (`Retry-After`), however often; else pauses
        grow, a random part of each taken off, so that those who failed together do not come back
        together. Raises ``error`` where it is no passing one, where it came once too often, and
        where the wait would end beyond the deadline.
        """
        self._last = error
        if not error.is_passing:
            raise error
        if error.retry_after_s is not None:
            seconds = error.retry_after_s
        else:
            if self._blind >= self.retries:
                raise error
            longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._blind)
            seconds = longest * random.uniform(0.5, 1.0)
            self._blind += 1
        if seconds >= self.left_s:
            raise error
        return seconds
