"""Chunk-reset reasoning: a chunk that the judge refuses is written again (paper: inference)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stepwiser.prompting.chunks import strip_tags
from stepwiser.search.drafts import (
    ChunkJudge,
    ChunkPolicy,
    ChunkVerdict,
    Continuation,
    Draft,
    ProblemT,
    Spent,
    try_chunk,
)


@dataclass(frozen=True)
class SearchResult(Spent):
    """One solution found by chunk-reset, with all that it cost."""

    text: str
    """The response with its tags."""
    token_ids: tuple[int, ...]
    chunks: tuple[str, ...]
    """Without tags; an answer part after the last chunk is appended to that chunk."""
    scores: tuple[float, ...]
    """The judge's score of each chunk."""
    samples: tuple[int, ...]
    """Candidates sampled for each accepted one."""
    forced: int
    """Candidates kept although every sample was refused."""
    finished: bool
    """Whether the response ended before ``max_chunks``."""


@dataclass(frozen=True)
class TriedCandidate:
    """A chunk that was tried; it is accepted where its verdict is positive."""

    round: int
    """Candidates that were accepted before it."""
    sample: int
    """Which try of its round, from 0."""
    text: str
    """Without tags."""
    tokens: int
    """Of the policy."""
    verdict: ChunkVerdict


@dataclass(frozen=True)
class KeptCandidate:
    """A refused chunk that stays, since every sample of its round was refused."""

    round: int
    sample: int
    score: float


SearchEvent = TriedCandidate | KeptCandidate


async def chunk_reset(
    problem: ProblemT,
    policy: ChunkPolicy[ProblemT],
    judge: ChunkJudge[ProblemT],
    samples_per_chunk: int = 5,
    *,
    max_chunks: int,
    on_event: Callable[[SearchEvent], None] = lambda _: None,
) -> SearchResult:
    """Write a solution chunk by chunk; a chunk judged Negative is sampled again from the same
    prefix.

    After ``samples_per_chunk`` refusals of one chunk the sample with the highest score stays (the
    first of equals). An answer part outside the chunks is judged together with the last chunk, as
    in training; a candidate without any text (the bare end of sequence) is accepted unjudged.
    ``on_event`` is told of every judged candidate at once, and of those that stay though refused.

    Raises:
        ValueError: ``samples_per_chunk`` or ``max_chunks`` below 1, or a policy that returns no
            tokens without being finished, or a judge's score that is nan.
    """
    for name, limit in (("samples_per_chunk", samples_per_chunk), ("max_chunks", max_chunks)):
        if limit < 1:
            raise ValueError(f"{name} must be at least 1, got {limit}")
    draft = Draft()
    samples: list[int] = []
    rejected = judge_tokens = forced = 0
    while not draft.finished and len(samples) < max_chunks:
        tried: list[Continuation] = []
        for _ in range(samples_per_chunk):
            step = await try_chunk(problem, policy, judge, draft)
            tried.append(step)
            if step.verdict is None:
                break
            judge_tokens += step.judge_tokens
            text = strip_tags(step.candidate.text)
            told = TriedCandidate(
                len(samples), len(tried) - 1, text, step.policy_tokens, step.verdict
            )
            on_event(told)
            if step.verdict.positive:
                break
        else:
            forced += 1
            scores = [step.verdict.score for step in tried if step.verdict is not None]
            best = max(range(len(scores)), key=scores.__getitem__)
            on_event(KeptCandidate(len(samples), best, scores[best]))
            tried.append(tried.pop(best))
        rejected += sum(step.policy_tokens for step in tried[:-1])
        samples.append(len(tried))
        draft = tried[-1].draft
    return SearchResult(
        accepted_tokens=len(draft.token_ids),
        rejected_tokens=rejected,
        judge_tokens=judge_tokens,
        text=draft.text,
        token_ids=draft.token_ids,
        chunks=draft.chunks,
        scores=draft.scores,
        samples=tuple(samples),
        forced=forced,
        finished=draft.finished,
    )
