"""How long engines wait for work."""

from __future__ import annotations

from collections.abc import Sequence

from actors.engine.engine import EngineStats


class IdleClock:
    """How much of its time the pool had nothing to compute, from one look to the next."""

    def __init__(self) -> None:
        self._before: tuple[float, float] | None = None

    def idle(self, stats: Sequence[EngineStats]) -> float | None:
        """Share of the engines' time since the last look; None at the first."""
        busy, seconds = sum(s.busy_seconds for s in stats), sum(s.seconds for s in stats)
        before, self._before = self._before, (busy, seconds)
        if before is None or seconds <= before[1]:
            return None
        # The counters of an engine that died are those it last sent: a second may be missing.
        return min(1.0, max(0.0, 1.0 - (busy - before[0]) / (seconds - before[1])))
