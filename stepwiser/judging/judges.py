"""Judges over any generator: the generative one of the paper and the discriminative baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf
from typing import Protocol

from stepwiser.generation import Generator, Sample, Sampling
from stepwiser.judging.votes import majority, verdict_score
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.prompting.thinking import is_unfinished
from stepwiser.prompting.verdicts import parse_verdict, positive_probability


@dataclass(frozen=True)
class JudgeVerdict:
    """What a judge says about one chunk."""

    verdict: bool | None
    """Majority of the votes; None where no vote named a verdict (never read as Negative)."""
    score: float | None
    """Belief in Positive, 0 to 1 (`judging.verdict_score`); None without a verdict."""
    analysis: str
    """Text of the first vote that agrees with the verdict; empty for a discriminative judge."""
    votes: tuple[bool | None, ...]
    tokens: int
    """Generated tokens of all votes."""
    truncated: int
    """Votes that ran into the token limit."""
    unfinished: int = 0
    """Votes whose thinking never ended, which have no verdict for that."""


class Judge(Protocol):
    """Judges one chunk after its history."""

    async def judge(self, problem: str, history: Sequence[str], chunk: str) -> JudgeVerdict: ...


@dataclass(frozen=True)
class GenerativeJudge:
    """Reasons about the chunk, then gives the verdict (paper section 3.3)."""

    generator: Generator
    prompts: PromptFormat
    sampling: Sampling
    """Of the votes; with `top_logprobs` a lone one has a score between 0 and 1."""
    force: str = ""
    """Text the answer is made to begin with: shows what a style alone is worth."""

    async def judge(self, problem: str, history: Sequence[str], chunk: str) -> JudgeVerdict:
        prompt = self.prompts.judge_ids(problem, history, chunk)
        if self.force:
            prompt = prompt + self.prompts.encode(self.prompts.closing + self.force)
        return self.read(await self.generator.generate(prompt, self.sampling, affinity=problem))

    def read(self, samples: Sequence[Sample]) -> JudgeVerdict:
        """Samples of one judge prompt into a verdict."""
        if not self.force:  # which comes after the thinking
            samples = self.prompts.heard(samples)
        votes = tuple(parse_verdict(s.text) for s in samples)
        verdict = majority(votes)
        decode = self.prompts.decode_token
        score = verdict_score(
            votes,
            [
                None if vote is None else positive_probability(sample, decode)
                for sample, vote in zip(samples, votes, strict=True)
            ],
        )
        analysis = next(
            (s.text for s, v in zip(samples, votes, strict=True) if v is verdict), samples[0].text
        )
        return JudgeVerdict(
            verdict=verdict,
            score=score,
            analysis=self.force + analysis,
            votes=votes,
            tokens=sum(len(s.token_ids) for s in samples),
            truncated=sum(s.truncated for s in samples),
            unfinished=sum(is_unfinished(s.text) for s in samples),
        )


@dataclass(frozen=True)
class DiscriminativeJudge:
    """Reads the verdict off one token, without a word of analysis (the paper's baseline)."""

    generator: Generator
    prompts: PromptFormat

    async def judge(self, problem: str, history: Sequence[str], chunk: str) -> JudgeVerdict:
        prompt = self.prompts.discriminative_ids(problem, history, chunk)
        sampling = Sampling(max_tokens=1, temperature=1.0, logprobs=True, top_logprobs=20)
        (sample,) = await self.generator.generate(prompt, sampling, affinity=problem)
        top = sample.top_logprobs[0] if sample.top_logprobs else {}
        marks = self.prompts.mark_ids
        positive, negative = (exp(top.get(marks[label], -inf)) for label in (True, False))
        if positive + negative == 0.0:
            return JudgeVerdict(None, None, "", (None,), 1, 0)
        score = positive / (positive + negative)
        verdict = score >= 0.5
        return JudgeVerdict(verdict, score, "", (verdict,), 1, 0)
