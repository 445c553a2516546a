"""Beam search over chunks: the judge's scores say which unfinished solutions are written on."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from stepwiser.config.models import ScoreReduction
from stepwiser.search.drafts import ChunkJudge, ChunkPolicy, Draft, ProblemT, Spent, try_chunk
from stepwiser.search.voting import solution_score


@dataclass(frozen=True)
class BeamResult(Spent):
    """The best solution of a beam; what the others cost was rejected."""

    draft: Draft
    candidates: tuple[int, ...]
    """Candidates sampled in each round."""


async def beam_search(
    problem: ProblemT,
    policy: ChunkPolicy[ProblemT],
    judge: ChunkJudge[ProblemT],
    beams: int,
    expansions: int,
    *,
    max_chunks: int,
    reduction: ScoreReduction,
) -> BeamResult:
    """Keep the ``beams`` best of ``beams * expansions`` candidates a round, of whichever drafts.

    A draft's rank is the ``reduction`` of its chunks' scores, of equals the one sampled first. All
    candidates of a round are sampled and judged side by side. A finished solution that is kept
    keeps its place to the end, so a round may have fewer candidates. After ``max_chunks`` rounds,
    or when all kept are finished, the best finished one is returned, else the best of all. What has
    no score (a bare end of sequence at the start) ranks last.

    Raises:
        ValueError: ``beams``, ``expansions`` or ``max_chunks`` below 1, or what `try_chunk` raises.
    """
    for name, limit in (("beams", beams), ("expansions", expansions), ("max_chunks", max_chunks)):
        if limit < 1:
            raise ValueError(f"{name} must be at least 1, got {limit}")

    def rank(draft: Draft) -> float:
        score = solution_score(draft.scores, reduction)
        return -math.inf if score is None else score

    kept = [Draft()]
    candidates: list[int] = []
    policy_tokens = judge_tokens = 0
    while len(candidates) < max_chunks and not all(draft.finished for draft in kept):
        done = [draft for draft in kept if draft.finished]
        # All drafts of the first round are the same empty one.
        each = expansions if candidates else beams * expansions
        steps = await asyncio.gather(
            *(
                try_chunk(problem, policy, judge, draft)
                for draft in kept
                if not draft.finished
                for _ in range(each)
            )
        )
        candidates.append(len(steps))
        policy_tokens += sum(step.policy_tokens for step in steps)
        judge_tokens += sum(step.judge_tokens for step in steps)
        ranked = sorted((step.draft for step in steps), key=rank, reverse=True)
        kept = done + ranked[: beams - len(done)]
    best = max([draft for draft in kept if draft.finished] or kept, key=rank)
    accepted = len(best.token_ids)
    return BeamResult(accepted, policy_tokens - accepted, judge_tokens, best, tuple(candidates))
