"""Judging one request with an engine that lives in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from actors.engine.engine import EngineFailure
from serve.schema import (
    JudgeRequest,
    JudgeResponse,
    ModelInfo,
    StepVerdict,
    Usage,
    Verdict,
    steps_of,
)
from stepwiser.errors import UserError
from stepwiser.judging.judges import GenerativeJudge, JudgeVerdict


@dataclass(frozen=True)
class JudgeService:
    """A generative judge and the limits of its engine."""

    judge: GenerativeJudge
    max_model_len: int
    """Tokens of prompt and answer together."""
    model: ModelInfo

    @property
    def max_prompt_tokens(self) -> int:
        return self.max_model_len - self.judge.sampling.max_tokens

    async def answer(self, request: JudgeRequest) -> JudgeResponse:
        """Judge every step after the steps before it.

        The steps go to the engine all at once, which batches them; with `stop_at_first_negative`
        they go one by one, which saves tokens and costs time. Raises UserError for input that
        cannot be judged and EngineFailure when the engine fails on any step.
        """
        steps = steps_of(request)
        lengths = self._prompt_lengths(request.problem, steps)
        sampling = self.judge.sampling
        judge = replace(self.judge, sampling=replace(sampling, n=request.votes or sampling.n))
        if request.stop_at_first_negative:
            results = []
            for i in range(len(steps)):
                results.append(await self._judge(judge, request.problem, steps, i))
                if results[-1].verdict is False:
                    break
        else:
            results = await _all_or_cancel(
                [self._judge(judge, request.problem, steps, i) for i in range(len(steps))]
            )
        verdicts = [_step_verdict(i, steps[i], result) for i, result in enumerate(results)]
        return JudgeResponse(
            steps=verdicts,
            first_negative=next((v.index for v in verdicts if v.verdict == "Negative"), -1),
            model=self.model,
            usage=Usage(
                prompt_tokens=sum(lengths[: len(verdicts)]),
                judge_tokens=sum(v.tokens for v in verdicts),
            ),
        )

    def _prompt_lengths(self, problem: str, steps: Sequence[str]) -> list[int]:
        """Tokens of every step's judge prompt; UserError naming the first one that is too long."""
        prompts, limit = self.judge.prompts, self.max_prompt_tokens
        why = (
            f"the limit is {limit} (engine.max_model_len {self.max_model_len} less "
            f"{self.judge.sampling.max_tokens} for the analysis)"
        )
        problem_tokens = len(prompts.encode(problem))
        if problem_tokens > limit:
            raise UserError(
                f"problem: has {problem_tokens} tokens, {why}; shorten it or serve with a larger "
                "engine.max_model_len"
            )
        lengths = []
        for i, step in enumerate(steps):
            tokens = len(prompts.judge_ids(problem, steps[:i], step))
            if tokens > limit:
                raise UserError(
                    f"steps.{i}: problem and steps up to this one make a judge prompt of {tokens} "
                    f"tokens, {why}; send fewer or shorter steps, or serve with a larger "
                    "engine.max_model_len"
                )
            lengths.append(tokens)
        return lengths

    async def _judge(
        self, judge: GenerativeJudge, problem: str, steps: Sequence[str], index: int
    ) -> JudgeVerdict:
        try:
            return await judge.judge(problem, steps[:index], steps[index])
        except EngineFailure as error:
            raise EngineFailure(f"steps.{index}: {error}") from error


async def _all_or_cancel(coroutines: Sequence) -> list:
    """Gather; when one fails the others are cancelled, so that the engine drops them."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except* Exception as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _word(verdict: bool | None) -> Verdict | None:
    if verdict is None:
        return None
    return "Positive" if verdict else "Negative"


def _step_verdict(index: int, text: str, result: JudgeVerdict) -> StepVerdict:
    return StepVerdict(
        index=index,
        text=text,
        verdict=_word(result.verdict),
        score=result.score,
        analysis=result.analysis,
        votes=[_word(vote) for vote in result.votes],
        tokens=result.tokens,
        truncated=result.truncated,
    )
