"""Monte-Carlo values of prefixes: how often a continuation ends in the right answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class ValueEstimate:
    """Successes among independent completions of one prefix (paper: Q with M = 16 completions).

    Kept as counts, so that any labelling rule can be applied later without new rollouts.

    Raises:
        ValueError: ``trials`` below 1, or ``successes`` outside ``0..trials``.
    """

    successes: int
    trials: int

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"a value needs at least 1 trial, got trials={self.trials}")
        if not 0 <= self.successes <= self.trials:
            raise ValueError(
                f"successes must lie in 0..{self.trials} (trials), got successes={self.successes}"
            )

    @property
    def mean(self) -> float:
        """Share of successes, 0..1."""
        return self.successes / self.trials

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson score interval of the success probability, within 0..1.

        Unlike the normal interval it keeps a sensible width at 0 and at 16 of 16, where most
        prefixes lie.

        Raises:
            ValueError: ``confidence`` not strictly between 0 and 1.
        """
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        n, p = self.trials, self.mean
        scale = 1 + z * z / n
        centre = (p + z * z / (2 * n)) / scale
        half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # Rounding must not move a bound that is exactly 0 or 1.
        low = 0.0 if self.successes == 0 else max(0.0, centre - half)
        high = 1.0 if self.successes == n else min(1.0, centre + half)
        return low, high

    def bounds(self, total_trials: int) -> tuple[float, float]:
        """Lowest and highest mean still possible once ``total_trials`` have been made.

        Raises:
            ValueError: ``total_trials`` below the trials already made.
        """
        if total_trials < self.trials:
            raise ValueError(
                f"total_trials must be at least the {self.trials} made, got {total_trials}"
            )
        missing = total_trials - self.trials
        return self.successes / total_trials, (self.successes + missing) / total_trials


def best_of_n(q: float, n: int = 4) -> float:
    """Success probability when the best of ``n`` independent completions counts: 1 − (1 − q)^n.

    Raises:
        ValueError: ``q`` outside 0..1 or ``n`` below 1.
    """
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"a value must lie in 0..1, got q={q}")
    if n < 1:
        raise ValueError(f"best of n needs n of at least 1, got n={n}")
    return 1.0 - (1.0 - q) ** n
