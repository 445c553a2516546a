"""What every judge can be asked, and the judges over a generator: generative, discriminative."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, inf
from typing import Protocol

from stepwiser.judging.votes import majority, verdict_score
from stepwiser.prompting.generation import Generator, Sample, Sampling
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
    prompt_tokens: int = 0
    """Tokens that were read for it; what several verdicts share counts for the first of them."""
    failed: int = 0
    """Votes that could not be asked for, which have no verdict for that."""


class Judge(Protocol):
    """Judges steps, each after its history. How a score becomes a verdict is its own affair."""

    async def judge(self, problem: str, history: Sequence[str], chunk: str) -> JudgeVerdict:
        """The verdict on one chunk."""
        ...

    async def judge_steps(self, problem: str, steps: Sequence[str]) -> list[JudgeVerdict]:
        """A verdict on each step of a solution, on those after a wrong one too."""
        asked = (self.judge(problem, steps[:i], step) for i, step in enumerate(steps))
        return list(await asyncio.gather(*asked))


@dataclass(frozen=True)
class GenerativeJudge(Judge):
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
        samples = await self.generator.generate(prompt, self.sampling, affinity=problem)
        return replace(self.read(samples), prompt_tokens=len(prompt))

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
class DiscriminativeJudge(Judge):
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
            return JudgeVerdict(None, None, "", (None,), 1, 0, prompt_tokens=len(prompt))
        score = positive / (positive + negative)
        verdict = score >= 0.5
        return JudgeVerdict(verdict, score, "", (verdict,), 1, 0, prompt_tokens=len(prompt))
