"""What every section of the configuration shares."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


KnownChecker = Literal["exact", "math_verify"]


def _checker(kind: str) -> str:
    """Raises ValueError for what is no name, no dotted path of a function and no address."""
    names = get_args(KnownChecker)
    dotted = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
    if kind in names or re.fullmatch(rf"{dotted}:{dotted}|https?://[^\s/]+\S*", kind):
        return kind
    raise ValueError(
        f"is none of {', '.join(names)}, no function as module:function (my_package.checks:same), "
        "and no http(s):// address of a verifier: give one of these"
    )


AnswerChecker = Annotated[str, AfterValidator(_checker)]
"""Who says whether an answer is the reference; whether a function exists is found at its import."""


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
