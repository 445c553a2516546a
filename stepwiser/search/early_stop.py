"""Samples written side by side, of which those that the judge gives up are written no further."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from stepwiser.config.models import ScoreReduction
from stepwiser.search.drafts import (
    ChunkJudge,
    ChunkPolicy,
    Draft,
    ProblemT,
    Spent,
    try_chunk,
    write_chunk,
)
from stepwiser.search.voting import solution_score


@dataclass(frozen=True)
class GuardedSample:
    """A solution that was judged while it was written."""

    draft: Draft
    abandoned: bool
    """It has as many Negative chunks as it may."""
    judge_tokens: int


@dataclass(frozen=True)
class EarlyStopResult(Spent):
    """Solutions of one problem that have a vote; what was abandoned is rejected."""

    voters: tuple[Draft, ...]
    """Those that were not abandoned; where all were, the one that was then written to its end."""
    abandoned: int


async def guarded_sample(
    problem: ProblemT,
    policy: ChunkPolicy[ProblemT],
    judge: ChunkJudge[ProblemT],
    *,
    negatives: int,
    max_chunks: int,
) -> GuardedSample:
    """Write a solution until it is done, has ``negatives`` Negative chunks, or ``max_chunks``.

    Raises:
        ValueError: ``negatives`` or ``max_chunks`` below 1, or what `try_chunk` raises.
    """
    for name, limit in (("negatives", negatives), ("max_chunks", max_chunks)):
        if limit < 1:
            raise ValueError(f"{name} must be at least 1, got {limit}")
    draft = Draft()
    refused = judge_tokens = 0
    while not draft.finished and draft.rounds < max_chunks and refused < negatives:
        step = await try_chunk(problem, policy, judge, draft)
        draft = step.draft
        judge_tokens += step.judge_tokens
        refused += step.verdict is not None and not step.verdict.positive
    return GuardedSample(draft, refused >= negatives, judge_tokens)


async def early_stop(
    problem: ProblemT,
    policy: ChunkPolicy[ProblemT],
    judge: ChunkJudge[ProblemT],
    samples: int,
    *,
    negatives: int,
    max_chunks: int,
    reduction: ScoreReduction,
) -> tuple[EarlyStopResult, tuple[GuardedSample, ...]]:
    """Write ``samples`` solutions side by side and settle who votes; the samples come along.

    Raises:
        ValueError: ``samples`` below 1, or what `guarded_sample` raises.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    written = await asyncio.gather(
        *(
            guarded_sample(problem, policy, judge, negatives=negatives, max_chunks=max_chunks)
            for _ in range(samples)
        )
    )
    result = await settle(problem, policy, written, max_chunks=max_chunks, reduction=reduction)
    return result, tuple(written)


async def settle(
    problem: ProblemT,
    policy: ChunkPolicy[ProblemT],
    samples: Sequence[GuardedSample],
    *,
    max_chunks: int,
    reduction: ScoreReduction,
) -> EarlyStopResult:
    """Who votes, with all costs. Where every sample was abandoned, the one with the most chunks, of
    these the one with the best score (the ``reduction`` of its chunks'), is written to its end,
    unjudged."""
    voters = [sample.draft for sample in samples if not sample.abandoned]
    abandoned = [sample.draft for sample in samples if sample.abandoned]
    if not voters:

        def reached(index: int) -> tuple[int, float]:
            draft = abandoned[index]
            score = solution_score(draft.scores, reduction)
            assert score is not None, "it was abandoned for a verdict"
            return len(draft.chunks), score

        last = abandoned.pop(max(range(len(abandoned)), key=reached))
        while not last.finished and last.rounds < max_chunks:
            last = await write_chunk(problem, policy, last)
        voters = [last]
    return EarlyStopResult(
        accepted_tokens=sum(len(draft.token_ids) for draft in voters),
        rejected_tokens=sum(len(draft.token_ids) for draft in abandoned),
        judge_tokens=sum(sample.judge_tokens for sample in samples),
        voters=tuple(voters),
        abandoned=sum(sample.abandoned for sample in samples),
    )
