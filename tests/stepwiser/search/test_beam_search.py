"""Beam search on a toy policy: limits, costs, and what a judge that knows everything gives."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwiser.config.models import ScoreReduction
from stepwiser.search.beam_search import BeamResult, beam_search
from stepwiser.search.drafts import ChunkCandidate
from tests.stepwiser.search.toy import (
    DiceJudge,
    NanJudge,
    ToyJudge,
    ToyPolicy,
    is_right,
    plain_solution,
)

SEEDS = st.integers(0, 10**6)
SIZES = st.integers(1, 4)
REDUCTIONS = st.sampled_from(get_args(ScoreReduction))


def search(
    policy: ToyPolicy,
    judge: ToyJudge,
    beams: int,
    expansions: int,
    reduction: ScoreReduction = "mean",
    max_chunks: int = 6,
) -> BeamResult:
    return asyncio.run(
        beam_search(
            "p", policy, judge, beams, expansions, max_chunks=max_chunks, reduction=reduction
        )
    )


@settings(deadline=None)
@given(SEEDS, SIZES, SIZES, REDUCTIONS, st.integers(1, 5))
def test_costs_add_up_within_the_limits(
    seed: int, beams: int, expansions: int, reduction: ScoreReduction, max_chunks: int
) -> None:
    policy, judge = ToyPolicy(seed), DiceJudge()
    result = search(policy, judge, beams, expansions, reduction, max_chunks)
    assert result.policy_tokens == policy.tokens
    assert result.judge_tokens == judge.tokens == 3 * sum(result.candidates)
    assert result.total_tokens == policy.tokens + judge.tokens
    assert result.accepted_tokens == len(result.draft.token_ids) > 0 <= result.rejected_tokens
    assert result.candidates[0] == beams * expansions >= max(result.candidates)
    assert all(count % expansions == 0 for count in result.candidates)
    assert result.draft.rounds <= len(result.candidates) <= max_chunks
    assert result.draft.finished or len(result.candidates) == max_chunks
    assert len(result.draft.scores) == len(result.draft.chunks) == result.draft.rounds


@settings(deadline=None)
@given(SEEDS, SIZES, SIZES, REDUCTIONS)
def test_a_judge_that_knows_everything_never_harms(
    seed: int, beams: int, expansions: int, reduction: ScoreReduction
) -> None:
    plain = asyncio.run(plain_solution(ToyPolicy(seed), 6))
    result = search(ToyPolicy(seed), ToyJudge(), beams, expansions, reduction)
    if is_right(plain):
        assert is_right(result.draft.chunks)


def test_a_judge_that_knows_everything_helps() -> None:
    plain = sum(is_right(asyncio.run(plain_solution(ToyPolicy(s), 6))) for s in range(200))
    found = sum(is_right(search(ToyPolicy(s), ToyJudge(), 2, 2).draft.chunks) for s in range(200))
    assert found > 1.5 * plain > 0


@settings(deadline=None)
@given(SEEDS, SIZES, SIZES, SEEDS)
def test_who_answers_first_does_not_matter(
    seed: int, beams: int, expansions: int, delays: int
) -> None:
    slow = search(ToyPolicy(seed, delays=delays), DiceJudge(delays + 1), beams, expansions)
    assert slow == search(ToyPolicy(seed), DiceJudge(), beams, expansions)


@settings(deadline=None)
@given(SEEDS)
def test_one_of_one_is_plain_sampling(seed: int) -> None:
    result = search(ToyPolicy(seed), DiceJudge(), 1, 1)
    assert list(result.draft.chunks) == asyncio.run(plain_solution(ToyPolicy(seed), 6))
    assert result.rejected_tokens == 0


def test_a_round_is_sampled_side_by_side() -> None:
    policy = ToyPolicy(1, delays=1)
    search(policy, DiceJudge(), 3, 4)
    assert policy.most_running == 12


class Tree:
    """Chunks by prefix, each with whether it is the last; their scores are what they say."""

    def __init__(self, script: dict[tuple[int, ...], list[tuple[str, bool]]]) -> None:
        self.script = script
        self.asked: Counter[tuple[int, ...]] = Counter()

    async def next_chunk(self, problem: str, prefix_ids: Sequence[int]) -> ChunkCandidate:
        prefix = tuple(prefix_ids)
        number = self.asked[prefix]
        self.asked[prefix] += 1
        text, finished = self.script[prefix][number]
        return ChunkCandidate((number,), text and f"<chunk>{text}</chunk>", finished)


class ReadJudge(ToyJudge):
    def score(self, history: Sequence[str], chunk: str) -> float:
        return float(chunk)


@pytest.mark.parametrize(
    ("ends", "firsts"),
    [
        ((("0.4", "0.9"), ("0.8", "0.46")), {"last", "mean"}),
        ((("0.5", "0.7"), ("0.9", "0.36")), {"last", "min", "product"}),
        ((("0.5", "0.5"), ("0.9", "0.4")), {"last", "min"}),
    ],
)
async def test_drafts_are_ranked_by_the_reduction(
    ends: tuple[tuple[str, str], ...], firsts: set[str]
) -> None:
    (first, first_end), (second, second_end) = ends
    script = {
        (): [(first, False), (second, False), ("0.1", False), ("0.2", False)],
        (0,): [("0.0", True), (first_end, True)],
        (1,): [(second_end, True), ("0.1", True)],
    }
    for reduction in get_args(ScoreReduction):
        result = await beam_search(
            "p", Tree(script), ReadJudge(), 2, 2, max_chunks=4, reduction=reduction
        )
        assert result.draft.chunks == ends[reduction not in firsts], reduction
        assert result.candidates == (4, 4) and result.rejected_tokens == 6


async def test_what_is_finished_keeps_its_place() -> None:
    script = {
        (): [("0.5", True), ("0.4", False), ("0.1", False), ("0.2", False)],
        (1,): [("0.9", False), ("0.8", False)],
        (1, 0): [("0.9", False), ("0.8", False)],
    }
    tree = Tree(script)
    result = await beam_search("p", tree, ReadJudge(), 2, 2, max_chunks=3, reduction="mean")
    # The other one would rank first, and has no end within three rounds.
    assert result.draft.chunks == ("0.5",) and result.candidates == (4, 2, 2)


async def test_a_bare_end_ranks_behind_whatever_was_judged() -> None:
    tree = Tree({(): [("", True), ("0.0", True)]})
    result = await beam_search("p", tree, ReadJudge(), 1, 2, max_chunks=3, reduction="min")
    assert result.draft.chunks == ("0.0",) and result.judge_tokens == 3


async def test_refuses() -> None:
    for name, limits in (
        ("beams", (0, 1, 1)),
        ("expansions", (1, 0, 1)),
        ("max_chunks", (1, 1, 0)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            beams, expansions, max_chunks = limits
            await beam_search(
                "p", ToyPolicy(0), ToyJudge(), beams, expansions,
                max_chunks=max_chunks, reduction="mean",
            )  # fmt: skip
    with pytest.raises(ValueError, match="score of chunk 1 is nan"):
        await beam_search("p", ToyPolicy(0), NanJudge(), 2, 2, max_chunks=3, reduction="mean")
