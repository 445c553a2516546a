"""Monte-Carlo values of prefixes: how often a continuation ends in the right answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

PRIOR = (0.5, 0.5)
"""Beta prior of a prefix's true value where a probability is needed (`RolloutCounts.predictive`).

Jeffreys': U-shaped, as values are (most prefixes are lost or nearly safe), and worth one rollout.
A flat prior fails where it matters: it holds a lost prefix so unlikely that, with many rollouts
planned, it takes the first failures for bad luck and Abs-Q for settled.
"""


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


@dataclass(frozen=True)
class RolloutCounts:
    """Successes among the completions made so far of the `planned` ones of a prefix.

    Unlike `ValueEstimate` it may be empty, and it knows what is still to come: the value it heads
    for is the share of successes among all `planned` completions.

    Raises:
        ValueError: not 0 ≤ ``successes`` ≤ ``trials`` ≤ ``planned``, or ``planned`` below 1.
    """

    successes: int
    trials: int
    planned: int

    def __post_init__(self) -> None:
        if not (0 <= self.successes <= self.trials <= self.planned and self.planned > 0):
            raise ValueError(
                "rollout counts need 0 <= successes <= trials <= planned and planned > 0, got "
                f"{self.successes}, {self.trials}, {self.planned}"
            )

    @property
    def missing(self) -> int:
        """Completions still to come."""
        return self.planned - self.trials

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest value still possible; equal once nothing is missing."""
        return self.successes / self.planned, (self.successes + self.missing) / self.planned

    def plus(self, successes: int, failures: int) -> RolloutCounts:
        """The counts after so many further completions."""
        trials = self.trials + successes + failures
        return RolloutCounts(self.successes + successes, trials, self.planned)

    def predictive(self) -> tuple[float, ...]:
        """Probability of 0, 1 … ``missing`` successes among the completions to come.

        Beta-binomial: the true value has the posterior of `PRIOR` after the completions made.
        A posterior does not depend on when one chose to stop, so it may be asked after every wave.
        """
        a, b = PRIOR
        return _beta_binomial(self.missing, self.successes + a, self.trials - self.successes + b)


@lru_cache(maxsize=65536)
def _beta_binomial(n: int, a: float, b: float) -> tuple[float, ...]:
    """Probability of k = 0..n successes in n draws with a success rate from Beta(a, b)."""

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    # 1 / C(n, k) = (n + 1) B(k + 1, n − k + 1), which a float holds for any n.
    return tuple(
        math.exp(log_beta(a + k, b + n - k) - log_beta(a, b) - log_beta(k + 1, n - k + 1)) / (n + 1)
        for k in range(n + 1)
    )


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
