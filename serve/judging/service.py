"""Judging one request: with the engine of a replica, or with a pool of them for a file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

from actors.engine.engine import Engine, EngineFailure
from serve.schema import (
    JudgeRequest,
    JudgeResponse,
    ModelInfo,
    Solution,
    StepVerdict,
    Usage,
    Verdict,
    steps_of,
)
from stepwiser.errors import UserError
from stepwiser.judging.judges import GenerativeJudge, JudgeVerdict
from stepwiser.prompting.generation import Sample, Sampling

ALTERNATIVES = 8
"""Tokens whose probabilities are asked for where one vote has to tell a belief: both verdicts are
among the first few wherever the judge names one."""
TRIES = 3
"""Samplings of a step until the judge names a verdict, where a number is wanted of it."""
EVENT_PAUSE_S = 0.05
"""Between two hand-overs of a stream: people read no faster, and each costs a message."""


@dataclass(frozen=True)
class AnalysisEvent:
    """What the judge has written on a step since the last one."""

    index: int
    text: str


Event = AnalysisEvent | StepVerdict | JudgeResponse
"""Of a stream, in this order; the last one has the steps without texts."""


@dataclass(frozen=True)
class _Work:
    """A request that can be judged."""

    judge: GenerativeJudge
    steps: list[str]
    prompts: list[list[int]]
    """Token ids of each step's prompt."""
    tries: int
    """Samplings of a step at most."""
    problem: str
    """What its prompts begin with: a pool sends them to one engine, whose cache has it."""


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

    async def answer(self, request: Solution) -> JudgeResponse:
        """Judge every step after the steps before it; where a number is wanted, one that got no
        verdict again.

        The steps go to the engine all at once, which batches them; with `stop_at_first_negative`
        they go one by one, which saves tokens and costs time. Raises UserError for input that
        cannot be judged and EngineFailure when the engine fails on any step.
        """
        began, work = time.monotonic(), self._work(request)
        count = len(work.steps)
        if isinstance(request, JudgeRequest) and request.stop_at_first_negative:
            results = []
            for i in range(count):
                results.append(await self._judge(work, i))
                if results[-1].verdict is False:
                    break
        else:
            results = await _all_or_cancel([self._judge(work, i) for i in range(count)])
        verdicts = [_step_verdict(i, work.steps[i], result) for i, result in enumerate(results)]
        response = self._response(work, verdicts, began)
        bare = isinstance(request, JudgeRequest) and request.score_only
        return response.without_texts() if bare else response

    async def stream(self, request: JudgeRequest) -> AsyncGenerator[list[Event]]:
        """`answer` as it comes about: a list of what is new, every now and then.

        Of several votes the first one is shown while it is written. Closing the iterator takes the
        requests out of the engine. Raises as `answer` does, UserError before the first list.
        """
        began, work = time.monotonic(), self._work(request)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()
        written: dict[int, str] = {}
        verdicts: list[StepVerdict] = []

        def tell(index: int, text: str) -> None:
            before = written.get(index, "")
            if len(text) > len(before) and not request.score_only:
                written[index] = text
                events.put_nowait(AnalysisEvent(index, text[len(before) :]))

        async def one(index: int) -> StepVerdict:
            def on_text(text: str) -> None:
                loop.call_soon_threadsafe(tell, index, text)

            verdict = _step_verdict(
                index, work.steps[index], await self._judge(work, index, on_text)
            )
            if request.score_only:
                verdict = verdict.model_copy(update={"text": None, "analysis": None})
            verdicts.append(verdict)
            events.put_nowait(verdict)
            return verdict

        async def run() -> None:
            count = len(work.steps)
            if not request.stop_at_first_negative:
                await _all_or_cancel([one(i) for i in range(count)])
                return
            for i in range(count):
                if (await one(i)).verdict == "Negative":
                    break

        task = asyncio.create_task(run())
        try:
            while not task.done() or not events.empty():
                await asyncio.wait([task], timeout=EVENT_PAUSE_S)
                found = [events.get_nowait() for _ in range(events.qsize())]
                if found:
                    yield found
            await task
        finally:
            task.cancel()
            await asyncio.wait([task])
        ordered = sorted(verdicts, key=lambda verdict: verdict.index)
        yield [self._response(work, ordered, began).without_texts()]

    async def judge_chunk(
        self, problem: str, history: Sequence[str], chunk: str, temperature: float
    ) -> JudgeVerdict:
        """One vote on a chunk of a search. Raises UserError where its prompt is too long and
        EngineFailure."""
        own = self.judge
        if (size := len(own.prompts.judge_ids(problem, history, chunk))) > self.max_prompt_tokens:
            raise UserError(
                f"problem: with the solution so far it makes a judge prompt of {size} tokens, the "
                f"limit is {self.max_prompt_tokens}; lower max_tokens or max_chunks, or serve with "
                "a larger engine.max_model_len"
            )
        sampling = replace(own.sampling, n=1, temperature=temperature, top_logprobs=ALTERNATIVES)
        return await replace(own, sampling=sampling).judge(problem, history, chunk)

    # --- one request ------------------------------------------------------------------------------

    def _work(self, request: Solution) -> _Work:
        """Raises UserError for what cannot be judged."""
        steps = steps_of(request)
        own = self.judge.sampling
        if (request.max_tokens or 0) > own.max_tokens:
            raise UserError(
                f"max_tokens: is {request.max_tokens}, this server's limit is {own.max_tokens}; "
                "leave it out or lower it"
            )
        temperature = own.temperature if request.temperature is None else request.temperature
        n = (request.votes or own.n) if temperature else 1  # they would all be the same
        sampling = replace(
            own,
            n=n,
            max_tokens=request.max_tokens or own.max_tokens,
            temperature=temperature,
            top_logprobs=ALTERNATIVES if n == 1 else 0,
        )
        judge = replace(self.judge, sampling=sampling)
        tries = 1 if isinstance(request, JudgeRequest) else TRIES
        prompts = self._prompts(request.problem, steps)
        return _Work(judge, steps, prompts, tries, request.problem)

    def _response(self, work: _Work, verdicts: list[StepVerdict], began: float) -> JudgeResponse:
        return JudgeResponse(
            steps=verdicts,
            first_negative=next((v.index for v in verdicts if v.verdict == "Negative"), -1),
            model=self.model,
            usage=Usage(
                prompt_tokens=sum(len(ids) for ids in work.prompts[: len(verdicts)]),
                judge_tokens=sum(v.tokens for v in verdicts),
                milliseconds=round(1000 * (time.monotonic() - began), 1),
            ),
        )

    def _prompts(self, problem: str, steps: Sequence[str]) -> list[list[int]]:
        """Every step's judge prompt; UserError naming the first one that is too long."""
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
        found = []
        for i, step in enumerate(steps):
            found.append(prompts.judge_ids(problem, steps[:i], step))
            if len(found[-1]) > limit:
                raise UserError(
                    f"steps.{i}: problem and steps up to this one make a judge prompt of "
                    f"{len(found[-1])} tokens, {why}; send fewer or shorter steps, or serve with a "
                    "larger engine.max_model_len"
                )
        return found

    async def _judge(
        self, work: _Work, index: int, on_text: Callable[[str], None] | None = None
    ) -> JudgeVerdict:
        judge, ids = work.judge, work.prompts[index]
        tokens = 0
        for _ in range(work.tries):
            try:
                if on_text is None:
                    samples = await judge.generator.generate(ids, judge.sampling, work.problem)
                else:
                    samples = await _shown(judge.generator, ids, judge.sampling, on_text)
            except EngineFailure as error:
                raise EngineFailure(f"steps.{index}: {error}") from error
            result = judge.read(samples)
            tokens += result.tokens
            if result.verdict is not None:
                break
        return replace(result, tokens=tokens)


async def _shown(
    engine: object, ids: list[int], sampling: Sampling, on_text: Callable[[str], None]
) -> list[Sample]:
    """Samples of a prompt, the first of which is told while it grows."""
    assert isinstance(engine, Engine)
    first = engine.stream(ids, replace(sampling, n=1), on_text)
    if sampling.n == 1:
        return [await first]
    rest = engine.generate(ids, replace(sampling, n=sampling.n - 1))
    sample, others = await _all_or_cancel([first, rest])
    return [sample, *others]


async def _all_or_cancel(coroutines: Sequence) -> list:
    """Gather; when one fails the others are cancelled, so that the engine drops them."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except* Exception as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def verdict_word(verdict: bool | None) -> Verdict | None:
    """As it is sent."""
    if verdict is None:
        return None
    return "Positive" if verdict else "Negative"


def _step_verdict(index: int, text: str, result: JudgeVerdict) -> StepVerdict:
    return StepVerdict(
        index=index,
        text=text,
        verdict=verdict_word(result.verdict),
        score=result.score,
        analysis=result.analysis,
        votes=[verdict_word(vote) for vote in result.votes],
        tokens=result.tokens,
        truncated=result.truncated,
    )
