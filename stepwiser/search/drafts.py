"""A solution that is written chunk by chunk: its policy, its judge, and what writing it costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from stepwiser.prompting.chunks import OPEN, parse_chunks, strip_tags

ProblemT = TypeVar("ProblemT")
ProblemT_contra = TypeVar("ProblemT_contra", contravariant=True)


@dataclass(frozen=True)
class ChunkCandidate:
    """One sampled continuation up to the next ``</chunk>`` or the end of the response."""

    token_ids: tuple[int, ...]
    text: str
    """Tags included, special tokens removed."""
    finished: bool
    """The response ends here, whether by end of sequence or for lack of room."""


@dataclass(frozen=True)
class ChunkVerdict:
    """What a judge says about one chunk."""

    positive: bool
    score: float
    """Higher is better; ranks the samples when all of them are refused."""
    tokens: int
    """Tokens that the judge generated."""
    decided: bool = True
    """False where the judge named no verdict."""
    analysis: str = ""


class ChunkPolicy(Protocol[ProblemT_contra]):
    """Writes solutions one chunk at a time."""

    async def next_chunk(
        self, problem: ProblemT_contra, prefix_ids: Sequence[int]
    ) -> ChunkCandidate:
        """Sample the chunk after ``prefix_ids``: the response's accepted ids, without a prompt."""
        ...


class ChunkJudge(Protocol[ProblemT_contra]):
    """Judges a chunk, given the ones before it; all texts are without tags."""

    async def judge(
        self, problem: ProblemT_contra, history: Sequence[str], chunk: str
    ) -> ChunkVerdict: ...


@dataclass(frozen=True)
class Spent:
    """Generated tokens of one solution."""

    accepted_tokens: int
    """Of what the answer comes from."""
    rejected_tokens: int
    """Of what the policy wrote besides."""
    judge_tokens: int

    @property
    def policy_tokens(self) -> int:
        return self.accepted_tokens + self.rejected_tokens

    @property
    def total_tokens(self) -> int:
        """Generated tokens altogether, the judge's included: what a fair baseline may spend."""
        return self.policy_tokens + self.judge_tokens


def together(parts: Iterable[Spent]) -> Spent:
    """The sum of what several solutions cost."""
    found = list(parts)
    return Spent(
        accepted_tokens=sum(part.accepted_tokens for part in found),
        rejected_tokens=sum(part.rejected_tokens for part in found),
        judge_tokens=sum(part.judge_tokens for part in found),
    )


@dataclass(frozen=True)
class Draft:
    """A solution as far as it is written."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    """With its tags."""
    chunks: tuple[str, ...] = ()
    """Without tags; an answer part after the last chunk belongs to that chunk."""
    scores: tuple[float, ...] = ()
    """The judge's, of each chunk that was judged."""
    rounds: int = 0
    """Candidates that it is made of."""
    finished: bool = False

    def with_candidate(self, candidate: ChunkCandidate) -> Draft:
        """What is written once the candidate is accepted; its score is not in it yet."""
        return replace(
            self,
            token_ids=(*self.token_ids, *candidate.token_ids),
            text=self.text + candidate.text,
            chunks=_extend(self.chunks, candidate),
            rounds=self.rounds + 1,
            finished=candidate.finished,
        )


@dataclass(frozen=True)
class Continuation:
    """A draft with one more candidate, and what the judge says about it."""

    candidate: ChunkCandidate
    verdict: ChunkVerdict | None
    """None where there is nothing to judge: a candidate without any text."""
    draft: Draft
    """As it is if the candidate is accepted."""

    @property
    def policy_tokens(self) -> int:
        return len(self.candidate.token_ids)

    @property
    def judge_tokens(self) -> int:
        return 0 if self.verdict is None else self.verdict.tokens


async def write_chunk(problem: ProblemT, policy: ChunkPolicy[ProblemT], draft: Draft) -> Draft:
    """The draft with a chunk that nobody judges.

    Raises:
        ValueError: a policy that returns no tokens without being finished.
    """
    return draft.with_candidate(await _sample(problem, policy, draft))


async def try_chunk(
    problem: ProblemT, policy: ChunkPolicy[ProblemT], judge: ChunkJudge[ProblemT], draft: Draft
) -> Continuation:
    """Sample a chunk and judge it; an answer part is judged together with the last chunk, as in
    training.

    Raises:
        ValueError: a policy that returns no tokens without being finished, or a judge's score that
            is nan.
    """
    candidate = await _sample(problem, policy, draft)
    longer = draft.with_candidate(candidate)
    if longer.chunks == draft.chunks:
        return Continuation(candidate, None, longer)
    verdict = await judge.judge(problem, longer.chunks[:-1], longer.chunks[-1])
    if math.isnan(verdict.score):
        raise ValueError(f"the judge's score of chunk {len(longer.chunks)} is nan")
    scores = (*draft.scores[: len(longer.chunks) - 1], verdict.score)
    return Continuation(candidate, verdict, replace(longer, scores=scores))


async def _sample(problem: ProblemT, policy: ChunkPolicy[ProblemT], draft: Draft) -> ChunkCandidate:
    candidate = await policy.next_chunk(problem, draft.token_ids)
    if not candidate.token_ids and not candidate.finished:
        raise ValueError("the policy returned a chunk of 0 tokens that is not finished")
    return candidate


def _extend(chunks: tuple[str, ...], candidate: ChunkCandidate) -> tuple[str, ...]:
    """The chunk texts once the candidate is accepted."""
    if not strip_tags(candidate.text).strip():
        return chunks
    if candidate.finished and chunks and OPEN not in candidate.text:
        return (*chunks[:-1], chunks[-1] + strip_tags(candidate.text))
    parsed = parse_chunks(candidate.text)
    if parsed is None:  # cut off by the length limit, or a policy that lost the format
        return (*chunks, strip_tags(candidate.text))
    return (*chunks, "".join(parsed.steps))
