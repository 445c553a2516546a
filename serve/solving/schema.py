"""What `/v1/solve` reads and answers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from serve.schema import EXAMPLE_PROBLEM, ModelInfo, Text, Verdict

MAX_SAMPLES = 16
"""Tries at a chunk that one request may ask for."""


class SolveRequest(BaseModel):
    """A problem to solve chunk by chunk; what is left out is as the server's `solve.*` says."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"problem": EXAMPLE_PROBLEM, "samples_per_chunk": 3}]},
    )

    problem: Text = Field(description="The problem, word for word.")
    samples_per_chunk: int | None = Field(
        None,
        ge=1,
        le=MAX_SAMPLES,
        description="Most tries at a chunk; where all are Negative the best of them is taken.",
    )
    max_chunks: int | None = Field(
        None, ge=1, description="A solution that is not done by then ends; at most the server's."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Longest solution, in tokens; at most the server's."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="Of the policy.")
    deadline_s: float | None = Field(
        None, gt=0, description="Give up after so many seconds (504); at most the server's."
    )
    stream: bool = Field(
        False,
        description="Answer with server-sent events: `chunk` for each one that was tried, `kept`"
        " where a rejected one is taken for lack of a better one, then `done` or `error`.",
    )


class TriedChunk(BaseModel):
    """A chunk that the policy wrote, and what the judge says of it."""

    round: int = Field(description="Chunks that were accepted before it.")
    sample: int = Field(description="Which try of its round, from 0.")
    text: str = Field(description="Without tags.")
    verdict: Verdict | None = Field(description="Null where the judge named none: it is accepted.")
    score: float = Field(description="Belief in Positive, 0 to 1; 0.5 without a verdict.")
    analysis: str = Field(description="What the judge wrote.")
    accepted: bool
    policy_tokens: int
    judge_tokens: int


class KeptChunk(BaseModel):
    """A rejected chunk that is taken, since all tries of its round were rejected."""

    round: int
    sample: int
    score: float


class SolveUsage(BaseModel):
    """What the solution cost, in generated tokens."""

    accepted_tokens: int = Field(description="Of the policy, in the solution.")
    rejected_tokens: int = Field(description="Of the policy, thrown away.")
    judge_tokens: int
    milliseconds: float = Field(description="Without the wait for a place.")


class SolveResponse(BaseModel):
    """The solution."""

    text: str = Field(description="As the policy wrote it, tags included.")
    answer: str | None = Field(description="In its last box; null where there is none.")
    steps: list[str]
    scores: list[float] = Field(description="The judge's score of each step.")
    forced: int = Field(description="Chunks that were kept although every try was rejected.")
    finished: bool = Field(description="False where max_chunks ended it.")
    tried: list[TriedChunk] = Field(description="In their order; empty in a stream's `done`.")
    policy: str
    judge: ModelInfo | None = None
    usage: SolveUsage
