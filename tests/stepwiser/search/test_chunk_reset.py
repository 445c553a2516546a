"""Chunk-reset on scripted policies and judges: what is kept, what it cost."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from stepwiser.search.chunk_reset import (
    KeptCandidate,
    SearchEvent,
    TriedCandidate,
    chunk_reset,
)
from stepwiser.search.drafts import ChunkCandidate, ChunkVerdict


class ScriptedPolicy:
    """Hands out candidates in order and remembers the prefixes it was asked to continue."""

    def __init__(self, *candidates: tuple[str, int, bool]) -> None:
        self.script = list(candidates)
        self.prefixes: list[tuple[int, ...]] = []
        self.next_id = 0

    async def next_chunk(self, problem: str, prefix_ids: Sequence[int]) -> ChunkCandidate:
        self.prefixes.append(tuple(prefix_ids))
        text, size, finished = self.script.pop(0)
        ids = tuple(range(self.next_id, self.next_id + size))
        self.next_id += size
        return ChunkCandidate(ids, text, finished)


class ScoreJudge:
    """Scores a chunk by the number in it; Positive from .5 on. Spends 10 tokens a judgement."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], str]] = []

    async def judge(self, problem: str, history: Sequence[str], chunk: str) -> ChunkVerdict:
        assert problem == "p"
        self.asked.append((tuple(history), chunk))
        score = float(chunk.split()[0])
        return ChunkVerdict(score >= 0.5, score, 10)


def piece(score: float, name: str = "") -> str:
    return f"<chunk>{score} {name}</chunk>"


async def test_negative_chunks_are_drawn_again_from_the_same_prefix() -> None:
    policy = ScriptedPolicy(
        (piece(0.9, "a"), 3, False),
        (piece(0.1, "b"), 4, False),
        (piece(0.2, "c"), 5, False),
        (piece(0.7, "d"), 6, True),
    )
    judge = ScoreJudge()
    result = await chunk_reset("p", policy, judge, max_chunks=8)
    assert result.text == piece(0.9, "a") + piece(0.7, "d")
    assert result.chunks == ("0.9 a", "0.7 d")
    assert result.scores == (0.9, 0.7)
    assert result.token_ids == (0, 1, 2, 12, 13, 14, 15, 16, 17)
    assert policy.prefixes == [(), (0, 1, 2), (0, 1, 2), (0, 1, 2)]
    assert judge.asked[-1] == (("0.9 a",), "0.7 d")
    assert (result.accepted_tokens, result.rejected_tokens, result.judge_tokens) == (9, 9, 40)
    assert result.total_tokens == 58
    assert (result.samples, result.forced, result.finished) == ((1, 3), 0, True)


async def test_after_the_last_refusal_the_best_attempt_stays() -> None:
    scores = [0.1, 0.4, 0.3, 0.4, 0.2]
    policy = ScriptedPolicy(*((piece(s, str(i)), i + 1, True) for i, s in enumerate(scores)))
    told: list[SearchEvent] = []
    result = await chunk_reset("p", policy, ScoreJudge(), max_chunks=8, on_event=told.append)
    assert result.chunks == ("0.4 1",)  # the first of the equally good ones
    assert told == [
        *(
            TriedCandidate(0, i, f"{score} {i}", i + 1, ChunkVerdict(False, score, 10))
            for i, score in enumerate(scores)
        ),
        KeptCandidate(0, 1, 0.4),
    ]
    assert result.scores == (0.4,)
    assert (result.accepted_tokens, result.rejected_tokens) == (2, 13)
    assert (result.samples, result.forced, result.judge_tokens) == ((5,), 1, 50)


async def test_fewer_samples_and_no_judgement_to_spare() -> None:
    policy = ScriptedPolicy((piece(0.1), 1, False), (piece(0.2), 1, True))
    result = await chunk_reset("p", policy, ScoreJudge(), 1, max_chunks=8)
    assert (result.samples, result.forced, result.rejected_tokens) == ((1, 1), 2, 0)


async def test_stops_at_max_chunks() -> None:
    policy = ScriptedPolicy(*((piece(0.9), 2, False) for _ in range(5)))
    result = await chunk_reset("p", policy, ScoreJudge(), max_chunks=3)
    assert (len(result.chunks), result.finished, result.accepted_tokens) == (3, False, 6)


async def test_answer_part_is_judged_with_the_last_chunk() -> None:
    policy = ScriptedPolicy((piece(0.9, "a"), 1, False), (" so \\boxed{3}", 4, True))
    judge = ScoreJudge()
    result = await chunk_reset("p", policy, judge, max_chunks=8)
    assert judge.asked == [((), "0.9 a"), ((), "0.9 a so \\boxed{3}")]
    assert result.chunks == ("0.9 a so \\boxed{3}",)
    assert result.scores == (0.9,)
    assert result.text == piece(0.9, "a") + " so \\boxed{3}"


async def test_chunk_and_answer_part_in_one_candidate() -> None:
    policy = ScriptedPolicy((piece(0.9, "a") + " so 3", 5, True))
    result = await chunk_reset("p", policy, ScoreJudge(), max_chunks=8)
    assert result.chunks == ("0.9 a so 3",)


async def test_bare_end_is_not_judged() -> None:
    policy = ScriptedPolicy((piece(0.9), 1, False), ("\n", 1, True))
    judge = ScoreJudge()
    result = await chunk_reset("p", policy, judge, max_chunks=8)
    assert len(judge.asked) == 1
    assert (result.accepted_tokens, result.samples, result.finished) == (2, (1, 1), True)
    assert len(result.chunks) == len(result.scores) == 1


async def test_unclosed_chunk_is_judged_without_its_tag() -> None:
    judge = ScoreJudge()
    policy = ScriptedPolicy(("<chunk>0.8 cut of", 3, True))
    result = await chunk_reset("p", policy, judge, max_chunks=8)
    assert judge.asked == [((), "0.8 cut of")]
    assert result.chunks == ("0.8 cut of",)


async def test_refuses() -> None:
    with pytest.raises(ValueError, match="samples_per_chunk must be at least 1, got 0"):
        await chunk_reset("p", ScriptedPolicy(), ScoreJudge(), 0, max_chunks=1)
    with pytest.raises(ValueError, match="max_chunks"):
        await chunk_reset("p", ScriptedPolicy(), ScoreJudge(), max_chunks=0)
    with pytest.raises(ValueError, match="0 tokens"):
        await chunk_reset("p", ScriptedPolicy(("", 0, False)), ScoreJudge(), max_chunks=1)
    with pytest.raises(ValueError, match="nan"):
        policy = ScriptedPolicy(("<chunk>nan</chunk>", 1, True))
        await chunk_reset("p", policy, ScoreJudge(), max_chunks=1)


class CoinPolicy:
    """Each chunk is good with probability p; a solution is five chunks."""

    def __init__(self, p: float, rng: random.Random) -> None:
        self.p, self.rng = p, rng

    async def next_chunk(self, problem: str, prefix_ids: Sequence[int]) -> ChunkCandidate:
        good = self.rng.random() < self.p
        return ChunkCandidate((0,), piece(0.9 if good else 0.1), len(prefix_ids) == 4)


async def test_an_oracle_judge_lifts_accuracy_as_computed() -> None:
    """A chunk fails only if all five samples do: (1 − (1 − p)^5)^5 instead of p^5."""
    p, n = 0.5, 600
    policy = CoinPolicy(p, random.Random(0))
    results = [await chunk_reset("p", policy, ScoreJudge(), max_chunks=9) for _ in range(n)]
    right = sum(min(r.scores) == 0.9 for r in results) / n
    assert right == pytest.approx((1 - (1 - p) ** 5) ** 5, abs=0.05)
    mean_samples = sum(sum(r.samples) for r in results) / n / 5
    assert mean_samples == pytest.approx((1 - (1 - p) ** 5) / p, abs=0.1)
