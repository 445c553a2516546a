"""What the judge service reads and answers, and how bad input is explained."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    StringConstraints,
)

from serve.errors import ErrorDetail
from stepwiser.config.models import ScoreReduction
from stepwiser.errors import UserError
from stepwiser.prompting.chunks import (
    CLOSE,
    OPEN,
    explain_malformed,
    parse_chunks,
    split_paragraphs,
    strip_tags,
)

MAX_STEPS = 512
"""Steps of one request; a longer list is refused rather than queued for minutes."""
MAX_VOTES = 64
MAX_ITEMS = 256
"""Solutions of one batch."""


def _unicode(text: str) -> str:
    """JSON can write half of a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half of a character at {error.start}") from None
    return text


AnyText = Annotated[str, AfterValidator(_unicode)]
Text = Annotated[str, StringConstraints(min_length=1)]
Verdict = Literal["Positive", "Negative"]
Reduction = ScoreReduction

EXAMPLE_PROBLEM = "ana has 64 coins. buys 21. doubles them. how many?"
EXAMPLE_STEPS: list[JsonValue] = ["buys 64+21=85\n", "doubles 2*85=160\n\\boxed{160}"]


class Solution(BaseModel):
    """One problem and its solution, as `steps` or as one `response`; and how to judge it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"problem": EXAMPLE_PROBLEM, "steps": [*EXAMPLE_STEPS]}]},
    )

    problem: Text = Field(description="The problem the steps try to solve.")
    steps: list[Text] | None = Field(
        None, min_length=1, max_length=MAX_STEPS, description="Reasoning steps in order."
    )
    response: Text | None = Field(
        None,
        description="Or the whole solution: cut at `<chunk>…</chunk>` tags where it has any, else"
        " at blank lines.",
    )
    votes: int | None = Field(
        None, ge=1, le=MAX_VOTES, description="Judgments of each step; else the server's."
    )
    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        description="Of the judgments; else 1. At 0 there is one vote, as all would be the same.",
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Longest analysis and verdict; at most the server's."
    )
    deadline_s: float | None = Field(
        None, gt=0, description="Give up after so many seconds (504); at most the server's."
    )


class JudgeRequest(Solution):
    """A solution whose steps are wanted one by one."""

    stop_at_first_negative: StrictBool = Field(
        False, description="Judge one step after another and end at the first Negative."
    )
    score_only: StrictBool = Field(False, description="Leave the texts of steps and analyses out.")
    stream: StrictBool = Field(
        False,
        description="Answer with server-sent events: `analysis` with what the judge has written"
        " since, `step` for each verdict, then `done` or `error`.",
    )


class StepVerdict(BaseModel):
    """The judge on one step."""

    index: int = Field(description="Position of the step, from 0.")
    text: str | None = Field(None, description="The step as it was judged, without chunk tags.")
    verdict: Verdict | None = Field(description="Majority of the votes; null where none was given.")
    score: float | None = Field(description="Belief in Positive, 0 to 1; null without a verdict.")
    analysis: str | None = Field(None, description="What the judge wrote, verdict included.")
    votes: list[Verdict | None]
    tokens: int = Field(description="Tokens the judge generated for this step, all votes.")
    truncated: int = Field(description="Votes cut off at the judge's token limit.")


class ModelInfo(BaseModel):
    """Whose verdicts these are."""

    name: str
    weight_version: int


class Usage(BaseModel):
    """What the request cost."""

    prompt_tokens: int = Field(description="Judge prompts read, once per step.")
    judge_tokens: int = Field(description="Tokens generated, all steps and votes.")
    milliseconds: float = Field(0.0, description="In the judge, without the wait for a place.")


class JudgeResponse(BaseModel):
    """Verdicts in the order of the steps."""

    steps: list[StepVerdict]
    first_negative: int = Field(description="Index of the first Negative step; -1 if none.")
    model: ModelInfo
    usage: Usage

    def without_texts(self) -> JudgeResponse:
        """For who asked for the scores alone."""
        bare = [s.model_copy(update={"text": None, "analysis": None}) for s in self.steps]
        return self.model_copy(update={"steps": bare})


class JudgeBatch(BaseModel):
    """Solutions that are judged side by side; each succeeds or fails by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: list[JudgeRequest] = Field(min_length=1, max_length=MAX_ITEMS)


class JudgeBatchItem(BaseModel):
    """One of `result` and `error` is null."""

    index: int
    result: JudgeResponse | None = None
    error: ErrorDetail | None = None


class JudgeBatchResponse(BaseModel):
    """In the order of the items."""

    items: list[JudgeBatchItem]
    failed: int


class ScoreRequest(Solution):
    """A solution of which one number is wanted."""

    reduction: Reduction = Field("mean", description="How step scores become one number.")


class ScoreResponse(BaseModel):
    """One number for a solution."""

    score: float = Field(description="0 to 1, higher is better.")
    step_scores: list[float]
    first_negative: int
    model: ModelInfo
    usage: Usage


class Health(BaseModel):
    """Whether the server is there, and whether a judge answers."""

    ready: bool
    model: ModelInfo | None = None
    version: str = Field(description="Version of the package.")
    token_required: bool = Field(description="Whether /v1 wants a key.")
    policy: str | None = Field(None, description="Model that /v1/solve writes with.")
    run: str | None = Field(None, description="Name of the run that /v1/run shows.")
    error: str | None = None


class JudgeCard(BaseModel):
    """What is served."""

    model: ModelInfo
    revision: str | None = Field(None, description="Commit, for a judge from the Hub.")
    label_rule: str | None = Field(None, description="What Positive was in training.")
    max_prompt_tokens: int
    max_judge_tokens: int


class Version(BaseModel):
    """Of the package and of the judge."""

    version: str
    judge: JudgeCard


def steps_of(request: Solution) -> list[str]:
    """The steps of a request, from whichever of the two fields it filled.

    Raises UserError when both or none are given, the chunk tags do not pair up, or a step is blank.
    """
    if (request.steps is None) == (request.response is None):
        which = "both" if request.steps is not None else "neither"
        raise UserError(
            f"steps and response: {which} given; send exactly one of them, a list of strings as "
            "steps or the whole solution as response"
        )
    if request.steps is None:
        return cut(request.response or "", "response")
    for i, step in enumerate(request.steps):
        if not step.strip():
            raise UserError(f"steps.{i}: is {step!r}; leave a blank step out")
        if strip_tags(step) != step:
            raise UserError(
                f"steps.{i}: has chunk tags in it; send the whole text as `response` instead"
            )
    return request.steps


def cut(response: str, name: str) -> list[str]:
    """A whole solution in steps: at its chunk tags, or at blank lines where it has none.

    Raises UserError, calling the text ``name``, for tags that do not pair up, a blank step, too
    many steps.
    """
    if OPEN in response or CLOSE in response:
        parsed = parse_chunks(response)
        if parsed is None:
            raise UserError(
                f"{name}: {explain_malformed(response)}; write <chunk>first step</chunk>"
                "<chunk>second step</chunk>, or leave the tags out and blank lines between steps"
            )
        steps = list(parsed.steps)
    else:
        steps = split_paragraphs(response)
    if not any(step.strip() for step in steps):
        raise UserError(f"{name}: is blank; give the text of a solution")
    for i, step in enumerate(steps):
        if not step.strip():
            raise UserError(f"{name}.{i}: is {step!r}; leave a blank step out")
    if len(steps) > MAX_STEPS:
        raise UserError(f"{name}: has {len(steps)} steps, the limit is {MAX_STEPS}; split it")
    return steps


def explain(errors: Sequence[Any], known: Sequence[str] = ()) -> tuple[str, str | None]:
    """Pydantic's findings in one sentence each (field, value, fix), and the first one's field.

    ``known``: names of the fields there are.
    """
    # A union reports every branch; one sentence is enough for each place.
    sentences = dict.fromkeys(_explain_one(error, known) for error in errors[:8])
    return "; ".join(sentences), _field(errors[0]) if errors else None


def _field(error: Any) -> str:
    # FastAPI puts "body" in front of the field's own path.
    return ".".join(str(part) for part in error["loc"] if part != "body") or "body"


def _explain_one(error: Any, known: Sequence[str]) -> str:
    field, kind, context = _field(error), error["type"], error.get("ctx", {})
    if kind == "json_invalid":
        return f"body: is not valid JSON ({context.get('error')}); send a JSON object"
    if kind == "extra_forbidden":
        name = field.rpartition(".")[2]
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}" if nearest else f"known fields are {', '.join(known)}"
        return f"{field}: unknown field; {hint}"
    if kind == "missing":
        return f"{field}: is missing; send it as a JSON field"
    if kind == "too_short":
        return f"{field}: is empty; give at least one"
    if kind == "string_too_short":
        return f"{field}: is empty; give its text"
    if kind == "too_long":
        return (
            f"{field}: has {context['actual_length']} entries, the limit is "
            f"{context['max_length']}; split the request"
        )
    value = repr(error.get("input"))
    return f"{field}: {error['msg']}, got {value if len(value) <= 80 else value[:77] + '...'}"
