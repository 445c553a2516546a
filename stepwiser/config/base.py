"""What every section of the configuration shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Unknown keys are errors: a misspelled key must never be ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def require_at_most(name: str, value: float, limit_name: str, limit: float) -> None:
    """Raises ValueError, which tells a person to lower the first."""
    if value > limit:
        raise ValueError(f"{name}={value} is above {limit_name}={limit}: lower the former")


def require_at_least(name: str, value: float, limit_name: str, limit: float) -> None:
    """Raises ValueError, which tells a person to raise the first."""
    if value < limit:
        raise ValueError(f"{name}={value} is below {limit_name}={limit}: raise the former")
