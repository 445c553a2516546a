"""A judge over step scores: classifiers and other scorers that write nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from stepwiser.judging.judges import Judge, JudgeVerdict
from stepwiser.judging.step_models import StepScores


class ScoreSource(Protocol):
    """Gives the scores of a solution's steps."""

    async def scores(self, problem: str, steps: Sequence[str]) -> StepScores: ...


@dataclass(frozen=True)
class ScoringJudge(Judge):
    """Positive is what scores at least the threshold; a step without a score has no verdict."""

    source: ScoreSource
    threshold: float = 0.5
    """0 to 1; 0.5 is the predicted label of a scorer with two."""

    async def judge(self, problem: str, history: Sequence[str], chunk: str) -> JudgeVerdict:
        verdicts = await self.judge_steps(problem, [*history, chunk])
        return replace(verdicts[-1], prompt_tokens=sum(v.prompt_tokens for v in verdicts))

    async def judge_steps(self, problem: str, steps: Sequence[str]) -> list[JudgeVerdict]:
        found = await self.source.scores(problem, steps)
        return [
            self._verdict(score, tokens)
            for score, tokens in zip(found.scores, found.tokens, strict=True)
        ]

    def _verdict(self, score: float | None, tokens: int) -> JudgeVerdict:
        verdict = None if score is None else score >= self.threshold
        return JudgeVerdict(verdict, score, "", (verdict,), 0, 0, prompt_tokens=tokens)
