"""A policy and judges of one line each: which chunk comes next depends on its prefix alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from random import Random

from stepwiser.search.drafts import ChunkCandidate, ChunkVerdict

RIGHT = "1"
"""What a right chunk says; a solution is right if all of its chunks are."""


class ToyPolicy:
    """The i-th chunk asked for after a prefix is always the same, however long others take."""

    def __init__(self, seed: int, share: float = 0.5, delays: int = 0) -> None:
        self.seed, self.share, self.delays = seed, share, Random(delays)
        self.asked: Counter[tuple[int, ...]] = Counter()
        self.tokens = self.running = self.most_running = 0

    async def next_chunk(self, problem: str, prefix_ids: Sequence[int]) -> ChunkCandidate:
        prefix = tuple(prefix_ids)
        number = self.asked[prefix]
        self.asked[prefix] += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        for _ in range(1 + self.delays.randrange(4)):
            await asyncio.sleep(0)
        self.running -= 1
        rng = Random(f"{self.seed}/{prefix}/{number}")
        text = RIGHT if rng.random() < self.share else "0"
        ids = (number, *(0 for _ in range(rng.randrange(3))))
        self.tokens += len(ids)
        return ChunkCandidate(ids, f"<chunk>{text}</chunk>", finished=rng.random() < 0.3)


class ToyJudge:
    """Spends 3 tokens a verdict."""

    def __init__(self, delays: int = 0) -> None:
        self.delays = Random(delays)
        self.tokens = 0

    async def judge(self, problem: str, history: Sequence[str], chunk: str) -> ChunkVerdict:
        for _ in range(self.delays.randrange(4)):
            await asyncio.sleep(0)
        self.tokens += 3
        score = self.score(history, chunk)
        return ChunkVerdict(score >= 0.5, score, 3)

    def score(self, history: Sequence[str], chunk: str) -> float:
        """1 exactly where everything so far is right."""
        return float(is_right([*history, chunk]))


class DiceJudge(ToyJudge):
    """Knows nothing; says the same about the same."""

    def score(self, history: Sequence[str], chunk: str) -> float:
        return Random(f"{history}/{chunk}").random()


class NanJudge(ToyJudge):
    def score(self, history: Sequence[str], chunk: str) -> float:
        return float("nan")


def is_right(chunks: Sequence[str]) -> bool:
    return all(chunk == RIGHT for chunk in chunks)


async def plain_solution(policy: ToyPolicy, max_chunks: int) -> list[str]:
    """What the policy writes when nobody looks: the first chunk after each prefix."""
    ids: tuple[int, ...] = ()
    chunks: list[str] = []
    for _ in range(max_chunks):
        candidate = await policy.next_chunk("", ids)
        ids += candidate.token_ids
        chunks.append(candidate.text.removeprefix("<chunk>").removesuffix("</chunk>"))
        if candidate.finished:
            break
    return chunks
