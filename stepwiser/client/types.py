"""What the service is asked and what it answers, by the names that its schema has.

A field that a newer server adds is left out. `tests/serve/test_client_types.py` holds these against
the schema.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict

from pydantic import BaseModel, ConfigDict

Verdict = Literal["Positive", "Negative"]
Reduction = Literal["mean", "min", "product", "last"]


class Solution(NamedTuple):
    """A problem and its solution: in ``steps``, or whole as ``response``, which the server cuts at
    its `<chunk>` tags or at blank lines."""

    problem: str
    steps: list[str] | None = None
    response: str | None = None


class Options(TypedDict, total=False):
    """How to judge; what is left out is the server's to choose."""

    votes: int
    """Judgments of each step."""
    temperature: float
    max_tokens: int
    """Longest analysis and verdict."""
    deadline_s: float
    """The server gives up after so many seconds (504)."""


class JudgeOptions(Options, total=False):
    """Of verdicts on steps."""

    stop_at_first_negative: bool
    score_only: bool
    """Leave the texts of steps and analyses out."""


class ScoreOptions(Options, total=False):
    """Of one number for a solution."""

    reduction: Reduction
    """How step scores become one number; the server's default is their mean."""


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class AnalysisEvent(_Answer):
    """What the judge has written on a step since the last one, of its first vote."""

    index: int
    text: str


class StepVerdict(_Answer):
    """The judge on one step."""

    index: int
    text: str | None = None
    verdict: Verdict | None
    """Majority of the votes; None where no vote named one, which is neither of the two."""
    score: float | None
    """Belief in Positive, 0 to 1; None without a verdict."""
    analysis: str | None = None
    votes: list[Verdict | None]
    tokens: int
    truncated: int
    """Votes cut off at the judge's token limit."""


class ModelInfo(_Answer):
    """Whose verdicts these are."""

    name: str
    weight_version: int


class Usage(_Answer):
    """What a request cost."""

    prompt_tokens: int
    judge_tokens: int
    milliseconds: float


class JudgeResponse(_Answer):
    """Verdicts in the order of the steps."""

    steps: list[StepVerdict]
    first_negative: int
    """Index of the first Negative step; -1 if none."""
    model: ModelInfo
    usage: Usage


class ScoreResponse(_Answer):
    """One number for a solution, 0 to 1, higher is better."""

    score: float
    step_scores: list[float]
    first_negative: int
    model: ModelInfo
    usage: Usage


class ErrorDetail(_Answer):
    """What went wrong, as the server says it."""

    type: str
    message: str
    param: str | None = None
    request_id: str | None = None


class ErrorBody(_Answer):
    """Body of every answer that is no success, and data of the event `error`."""

    error: ErrorDetail


class JudgeBatchItem(_Answer):
    """One of `result` and `error` is None."""

    index: int
    result: JudgeResponse | None = None
    error: ErrorDetail | None = None


class JudgeBatchResponse(_Answer):
    """In the order of the items."""

    items: list[JudgeBatchItem]
    failed: int


class JudgeCard(_Answer):
    """What is served."""

    model: ModelInfo
    revision: str | None = None
    label_rule: str | None = None
    """What Positive was in training."""
    max_prompt_tokens: int
    max_judge_tokens: int


class Version(_Answer):
    """Of the server's package and of its judge."""

    version: str
    judge: JudgeCard
