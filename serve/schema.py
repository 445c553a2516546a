"""What the judge service reads and answers, and how bad input is explained."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from stepwiser.errors import UserError
from stepwiser.prompting.chunks import explain_malformed, parse_chunks, strip_tags

MAX_STEPS = 512
"""Steps of one request; a longer list is refused rather than queued for minutes."""
MAX_VOTES = 64

Text = Annotated[str, StringConstraints(min_length=1)]
Verdict = Literal["Positive", "Negative"]


class JudgeRequest(BaseModel):
    """One problem and its solution, as `steps` or as one `response` in chunk tags."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    problem: Text = Field(description="The problem the steps try to solve.")
    steps: list[Text] | None = Field(
        None, min_length=1, max_length=MAX_STEPS, description="Reasoning steps in order."
    )
    response: Text | None = Field(
        None, description="Or the whole solution: `<chunk>first</chunk><chunk>second</chunk>`."
    )
    votes: int | None = Field(
        None, ge=1, le=MAX_VOTES, description="Judgments of each step; else the server's."
    )
    stop_at_first_negative: bool = Field(
        False, description="Judge one step after another and end at the first Negative."
    )


class StepVerdict(BaseModel):
    """The judge on one step."""

    index: int = Field(description="Position of the step, from 0.")
    text: str = Field(description="The step as it was judged, without chunk tags.")
    verdict: Verdict | None = Field(description="Majority of the votes; null where none was given.")
    score: float | None = Field(description="Belief in Positive, 0 to 1; null without a verdict.")
    analysis: str = Field(description="What the judge wrote, verdict included.")
    votes: list[Verdict | None]
    tokens: int = Field(description="Tokens the judge generated for this step, all votes.")
    truncated: int = Field(description="Votes cut off at the judge's token limit.")


class ModelInfo(BaseModel):
    """Whose verdicts these are."""

    name: str
    weight_version: int


class Usage(BaseModel):
    """Tokens of the request."""

    prompt_tokens: int = Field(description="Judge prompts read, once per step.")
    judge_tokens: int = Field(description="Tokens generated, all steps and votes.")


class JudgeResponse(BaseModel):
    """Verdicts in the order of the steps."""

    steps: list[StepVerdict]
    first_negative: int = Field(description="Index of the first Negative step; -1 if none.")
    model: ModelInfo
    usage: Usage


class Health(BaseModel):
    """Whether the engine answers."""

    ready: bool
    model: ModelInfo
    version: str = Field(description="Version of the package.")
    token_required: bool = Field(description="Whether /v1 wants a bearer token.")
    error: str | None = None


def steps_of(request: JudgeRequest) -> list[str]:
    """The steps of a request, from whichever of the two fields it filled.

    Raises UserError when both or none are given, the chunk tags do not pair up, or a step is blank.
    """
    if (request.steps is None) == (request.response is None):
        which = "both" if request.steps is not None else "neither"
        raise UserError(
            f"steps and response: {which} given; send exactly one of them, a list of strings as "
            "steps or the solution in <chunk> tags as response"
        )
    if request.steps is not None:
        steps, name = request.steps, "steps"
    else:
        steps, name = _chunks_of(request.response or ""), "response"
    for i, step in enumerate(steps):
        if not step.strip():
            raise UserError(f"{name}.{i}: is {step!r}; leave a blank step out")
        if strip_tags(step) != step:
            raise UserError(
                f"{name}.{i}: has chunk tags in it; send the whole text as `response` instead"
            )
    return steps


def _chunks_of(response: str) -> list[str]:
    parsed = parse_chunks(response)
    if parsed is None:
        raise UserError(
            f"response: {explain_malformed(response)}; write <chunk>first step</chunk>"
            "<chunk>second step</chunk>, or send the steps as a list in `steps`"
        )
    if len(parsed.steps) > MAX_STEPS:
        raise UserError(
            f"response: has {len(parsed.steps)} chunks, the limit is {MAX_STEPS}; split it"
        )
    return list(parsed.steps)


def explain(errors: Sequence[Any]) -> str:
    """Pydantic's findings in one sentence each: field, value, fix."""
    return "; ".join(_explain_one(error) for error in errors)


def _explain_one(error: Any) -> str:
    # FastAPI puts "body" in front of the field's own path.
    path = [str(part) for part in error["loc"] if part != "body"]
    field = ".".join(path) or "body"
    kind, context = error["type"], error.get("ctx", {})
    known = list(JudgeRequest.model_fields)
    if kind == "json_invalid":
        return f"body: is not valid JSON ({context.get('error')}); send a JSON object"
    if kind == "extra_forbidden":
        nearest = difflib.get_close_matches(field, known, n=1)
        hint = f"did you mean {nearest[0]}" if nearest else f"known fields are {', '.join(known)}"
        return f"{field}: unknown field; {hint}"
    if kind == "missing":
        return f"{field}: is missing; send it as a JSON field"
    if kind == "too_short":
        return f"{field}: is empty; give at least one step"
    if kind == "string_too_short":
        return f"{field}: is empty; give its text"
    if kind == "too_long":
        return (
            f"{field}: has {context['actual_length']} entries, the limit is "
            f"{context['max_length']}; split the request"
        )
    value = repr(error.get("input"))
    return f"{field}: {error['msg']}, got {value if len(value) <= 80 else value[:77] + '...'}"
