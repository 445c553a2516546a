"""The judge in use: chunk-reset reasoning and the baselines at the same cost (paper: inference)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from stepwiser.prompting.chunks import OPEN, parse_chunks, strip_tags

T = TypeVar("T")
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
class SearchResult:
    """One solution found by chunk-reset, with all that it cost."""

    text: str
    """The response with its tags."""
    token_ids: tuple[int, ...]
    chunks: tuple[str, ...]
    """Without tags; an answer part after the last chunk is appended to that chunk."""
    scores: tuple[float, ...]
    """The judge's score of each chunk."""
    accepted_tokens: int
    rejected_tokens: int
    judge_tokens: int
    samples: tuple[int, ...]
    """Candidates sampled for each accepted one."""
    forced: int
    """Candidates kept although every sample was refused."""
    finished: bool
    """Whether the response ended before ``max_chunks``."""

    @property
    def total_tokens(self) -> int:
        """Generated tokens altogether, the judge's included: what a fair baseline may spend."""
        return self.accepted_tokens + self.rejected_tokens + self.judge_tokens


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
    token_ids: list[int] = []
    texts: list[str] = []
    chunks: list[str] = []
    scores: list[float] = []
    samples: list[int] = []
    rejected = judge_tokens = forced = 0
    finished = False
    while not finished and len(samples) < max_chunks:
        tried: list[tuple[float, ChunkCandidate, list[str]]] = []
        for _ in range(samples_per_chunk):
            candidate = await policy.next_chunk(problem, tuple(token_ids))
            if not candidate.token_ids and not candidate.finished:
                raise ValueError("the policy returned a chunk of 0 tokens that is not finished")
            extended = _extend(chunks, candidate)
            if extended == chunks:
                tried.append((math.nan, candidate, extended))
                break
            verdict = await judge.judge(problem, tuple(extended[:-1]), extended[-1])
            if math.isnan(verdict.score):
                raise ValueError(f"the judge's score of chunk {len(extended)} is nan")
            judge_tokens += verdict.tokens
            text, spent = strip_tags(candidate.text), len(candidate.token_ids)
            on_event(TriedCandidate(len(samples), len(tried), text, spent, verdict))
            tried.append((verdict.score, candidate, extended))
            if verdict.positive:
                break
        else:
            forced += 1
            best = max(range(len(tried)), key=lambda i: tried[i][0])
            on_event(KeptCandidate(len(samples), best, tried[best][0]))
            tried.append(tried.pop(best))
        score, kept, extended = tried[-1]
        rejected += sum(len(candidate.token_ids) for _, candidate, _ in tried[:-1])
        token_ids.extend(kept.token_ids)
        texts.append(kept.text)
        samples.append(len(tried))
        if extended != chunks:
            scores[len(extended) - 1 :] = [score]
        chunks = extended
        finished = kept.finished
    return SearchResult(
        text="".join(texts),
        token_ids=tuple(token_ids),
        chunks=tuple(chunks),
        scores=tuple(scores),
        accepted_tokens=len(token_ids),
        rejected_tokens=rejected,
        judge_tokens=judge_tokens,
        samples=tuple(samples),
        forced=forced,
        finished=finished,
    )


def _extend(chunks: Sequence[str], candidate: ChunkCandidate) -> list[str]:
    """The chunk texts once the candidate is accepted."""
    if not strip_tags(candidate.text).strip():
        return list(chunks)
    if candidate.finished and chunks and OPEN not in candidate.text:
        return [*chunks[:-1], chunks[-1] + strip_tags(candidate.text)]
    parsed = parse_chunks(candidate.text)
    if parsed is None:  # cut off by the length limit, or a policy that lost the format
        return [*chunks, strip_tags(candidate.text)]
    return [*chunks, "".join(parsed.steps)]


def majority_vote(
    answers: Sequence[str | None], key: Callable[[str], Hashable] | None = None
) -> str | None:
    """The most frequent answer; ``None`` if no sample has one.

    Answers with equal ``key`` count as one and the first of them is returned. Samples without an
    answer have no vote. Of equally frequent answers the one seen first wins.
    """
    first: dict[Hashable, str] = {}
    votes: dict[Hashable, int] = {}
    for answer in answers:
        if answer is None:
            continue
        name = answer if key is None else key(answer)
        first.setdefault(name, answer)
        votes[name] = votes.get(name, 0) + 1
    return first[max(votes, key=votes.__getitem__)] if votes else None


def best_of_n(candidates: Sequence[T], scores: Sequence[float]) -> T:
    """The candidate with the highest score, the first of equals.

    Raises:
        ValueError: no candidate, lengths that differ, or a score that is nan.
    """
    if not candidates or len(candidates) != len(scores):
        raise ValueError(
            f"best_of_n needs one score a candidate, got {len(candidates)} candidates "
            f"and {len(scores)} scores"
        )
    if any(math.isnan(score) for score in scores):
        raise ValueError(f"scores must be numbers, got {list(scores)}")
    return candidates[max(range(len(scores)), key=scores.__getitem__)]


def samples_for_budget(total_tokens_per_problem: float, tokens_per_sample: float) -> int:
    """How many samples a baseline gets for the tokens that a search spent, at least 1.

    Rounded up, so that a comparison at equal cost never starves the baseline.

    Raises:
        ValueError: a token count that is not finite, a negative total, or a sample not above 0.
    """
    if not (math.isfinite(total_tokens_per_problem) and total_tokens_per_problem >= 0):
        raise ValueError(
            f"total_tokens_per_problem must be 0 or more, got {total_tokens_per_problem}"
        )
    if not (math.isfinite(tokens_per_sample) and tokens_per_sample > 0):
        raise ValueError(f"tokens_per_sample must be above 0, got {tokens_per_sample}")
    return max(1, math.ceil(total_tokens_per_problem / tokens_per_sample - 1e-9))
