"""Samples given up early on a toy policy: who votes, what was spent, who answers at the last."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwiser.search.drafts import Draft
from stepwiser.search.early_stop import EarlyStopResult, GuardedSample, early_stop, settle
from tests.stepwiser.search.toy import (
    DiceJudge,
    NanJudge,
    ToyJudge,
    ToyPolicy,
    is_right,
    plain_solution,
)

SEEDS = st.integers(0, 10**6)


class Yes(ToyJudge):
    def score(self, history: Sequence[str], chunk: str) -> float:
        return 1.0


def stop(
    policy: ToyPolicy, judge: ToyJudge, samples: int, negatives: int = 1, max_chunks: int = 6
) -> tuple[EarlyStopResult, tuple[GuardedSample, ...]]:
    return asyncio.run(
        early_stop(
            "p", policy, judge, samples,
            negatives=negatives, max_chunks=max_chunks, reduction="mean",
        )
    )  # fmt: skip


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(1, 3), st.integers(1, 5))
def test_costs_add_up_within_the_limits(
    seed: int, samples: int, negatives: int, max_chunks: int
) -> None:
    policy, judge = ToyPolicy(seed), DiceJudge()
    result, written = stop(policy, judge, samples, negatives, max_chunks)
    assert result.policy_tokens == policy.tokens
    assert result.judge_tokens == judge.tokens
    assert len(written) == samples and result.abandoned == sum(s.abandoned for s in written)
    assert len(result.voters) == max(1, samples - result.abandoned)
    for sample in written:
        refused = sum(score < 0.5 for score in sample.draft.scores)
        assert sample.draft.rounds <= max_chunks and refused <= negatives
        assert sample.abandoned == (refused == negatives)
        assert sample.abandoned or sample.draft.finished or sample.draft.rounds == max_chunks
    assert all(v.rounds <= max_chunks for v in result.voters)
    assert all(v.finished or v.rounds == max_chunks for v in result.voters)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_a_judge_that_knows_everything_never_harms(seed: int, samples: int) -> None:
    everything, _ = stop(ToyPolicy(seed), Yes(), samples)
    right = sum(is_right(draft.chunks) for draft in everything.voters)
    found, _ = stop(ToyPolicy(seed), ToyJudge(), samples)
    if right:
        assert len(found.voters) == right and all(is_right(d.chunks) for d in found.voters)
    assert found.policy_tokens <= everything.policy_tokens or not right


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5), SEEDS)
def test_who_answers_first_does_not_matter(seed: int, samples: int, delays: int) -> None:
    slow = stop(ToyPolicy(seed, delays=delays), DiceJudge(delays + 1), samples)
    assert slow == stop(ToyPolicy(seed), DiceJudge(), samples)


@settings(deadline=None)
@given(SEEDS)
def test_one_that_nobody_refuses_is_plain_sampling(seed: int) -> None:
    result, _ = stop(ToyPolicy(seed), Yes(), 1)
    assert list(result.voters[0].chunks) == asyncio.run(plain_solution(ToyPolicy(seed), 6))
    assert result.rejected_tokens == 0 and result.accepted_tokens == len(result.voters[0].token_ids)


def test_samples_are_written_side_by_side() -> None:
    policy = ToyPolicy(1, delays=1)
    stop(policy, DiceJudge(), 7)
    assert policy.most_running == 7


async def test_the_one_that_got_furthest_with_the_best_score_answers() -> None:
    def given_up(name: int, *scores: float) -> GuardedSample:
        ids = tuple(range(name, name + len(scores)))
        draft = Draft(ids, "", tuple("0" for _ in scores), scores, len(scores))
        return GuardedSample(draft, True, 10)

    # Three chunks: two samples got so far, of which the second has the better mean.
    samples = [given_up(10, 0.9, 0.4), given_up(20, 0.5, 0.5, 0.1), given_up(30, 0.7, 0.6, 0.0)]
    policy = ToyPolicy(3)
    result = await settle("p", policy, samples, max_chunks=6, reduction="mean")
    (voter,) = result.voters
    assert voter.token_ids[:3] == (30, 31, 32) and len(voter.chunks) > 3
    assert voter.scores == (0.7, 0.6, 0.0), "the rest of it is not judged"
    assert (result.accepted_tokens, result.rejected_tokens) == (3 + policy.tokens, 5)
    assert (result.judge_tokens, result.abandoned) == (30, 3)
    by_last = await settle("p", ToyPolicy(3), samples, max_chunks=6, reduction="last")
    assert by_last.voters[0].token_ids[:3] == (20, 21, 22)


async def test_what_was_refused_at_its_end_is_not_written_on() -> None:
    sample = GuardedSample(Draft((1,), "", ("0",), (0.2,), 1, finished=True), True, 10)
    policy = ToyPolicy(3)
    result = await settle("p", policy, [sample], max_chunks=6, reduction="mean")
    assert result.voters == (sample.draft,) and policy.tokens == 0


async def test_refuses() -> None:
    for name in ("samples", "negatives", "max_chunks"):
        limits = {"samples": 2, "negatives": 1, "max_chunks": 3} | {name: 0}
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            await early_stop("p", ToyPolicy(0), ToyJudge(), **limits, reduction="mean")
    with pytest.raises(ValueError, match="score of chunk 1 is nan"):
        await early_stop(
            "p", ToyPolicy(0), NanJudge(), 2, negatives=1, max_chunks=3, reduction="mean"
        )
