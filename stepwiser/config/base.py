"""What every section of the configuration shares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class Unit:
    """What a setting counts or measures; every number has one (configs/README.md shows it)."""

    name: str


PURE = Unit("number")
"""Of what has no unit: seeds, rates, coefficients, temperatures."""

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0), Unit("share, 0 to 1")]
Number = Annotated[float, PURE]
Seed = Annotated[int, PURE]
Tokens = Annotated[int, Field(gt=0), Unit("tokens")]
Seconds = Annotated[int, Field(gt=0), Unit("seconds")]
Mebibytes = Annotated[int, Field(gt=0), Unit("MiB")]
Problems = Annotated[int, Field(gt=0), Unit("problems")]
Responses = Annotated[int, Field(gt=0), Unit("responses of a problem")]
Rollouts = Annotated[int, Field(gt=0), Unit("rollouts of a prefix")]
Judgements = Annotated[int, Field(gt=0), Unit("judgements of a step")]
Prompts = Annotated[int, Field(gt=0), Unit("prompts")]
Steps = Annotated[int, Field(gt=0), Unit("training steps")]
Engines = Annotated[int, Field(gt=0), Unit("engines")]
Chunks = Annotated[int, Field(gt=0), Unit("chunks")]
Cpus = Annotated[float, Unit("CPUs, as Ray counts them")]
Gpus = Annotated[float, Field(ge=0), Unit("GPUs, as Ray counts them")]

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
