"""Learning-rate schedule as a pure function of the step, so that a resumed run needs no state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stepwiser.errors import UserError


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up to ``peak``, then constant or a linear decay to ``peak * floor``."""

    peak: float
    schedule: Literal["constant", "linear"] = "constant"
    warmup_steps: int = 0
    floor: float = 0.0
    """Share of the peak at which a linear decay arrives."""

    def __post_init__(self) -> None:
        if not self.peak > 0:
            raise UserError(f"learning rate {self.peak}: it must be above 0")
        if self.schedule not in ("constant", "linear"):
            raise UserError(f"schedule {self.schedule!r}: choose constant or linear")
        if not 0 <= self.floor <= 1:
            raise UserError(f"floor {self.floor}: a share of the peak between 0 and 1 is meant")
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps {self.warmup_steps}: it cannot be negative")

    def at(self, step: int, total_steps: int) -> float:
        """Rate of step ``step`` (from 0) of ``total_steps``; never 0 during warm-up."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return self.peak
        # The floor is reached just after the last step, so that with floor 0 none is wasted.
        span = max(total_steps - self.warmup_steps, 1)
        progress = min((step - self.warmup_steps) / span, 1.0)
        return self.peak * (1.0 - (1.0 - self.floor) * progress)
