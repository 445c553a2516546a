"""What the service makes of a generator's samples; the generator here is a plain function."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from actors.engine.engine import EngineFailure
from serve.judging.service import JudgeService
from serve.schema import JudgeRequest, ModelInfo, ScoreRequest, steps_of
from stepwiser.config import PromptConfig
from stepwiser.errors import UserError
from stepwiser.judging.judges import GenerativeJudge
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from tests.support.tiny import make_tiny_model

PROMPTS = PromptConfig(
    judge="{problem}\n{history}judge {chunk}", empty_history="", history_separator=""
)
MAX_MODEL_LEN = 512
MAX_TOKENS = 64


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> PromptFormat:
    directory = make_tiny_model(tmp_path_factory.mktemp("model"))
    return PromptFormat.from_model_dir(str(directory), PROMPTS)


@dataclass
class ByChunk:
    """A generator whose answer depends on the judged chunk, the end of the prompt."""

    prompts: PromptFormat
    answer: Callable[[str], str]
    asked: list[str] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        chunk = self.prompts.decode(prompt_ids).rpartition("judge ")[2]
        self.asked.append(chunk)
        self.samplings.append(sampling)
        try:
            await asyncio.sleep(0.05 if "slow" in chunk else 0)
        except asyncio.CancelledError:
            self.cancelled.append(chunk)
            raise
        text = self.answer(chunk)
        ids = tuple(self.prompts.encode(text))
        return [Sample(token_ids=ids, text=text, finish_reason="stop")] * sampling.n


def _service(prompts: PromptFormat, answer: Callable[[str], str]) -> tuple[JudgeService, ByChunk]:
    generator = ByChunk(prompts, answer)
    judge = GenerativeJudge(generator, prompts, Sampling(MAX_TOKENS))
    return JudgeService(judge, MAX_MODEL_LEN, ModelInfo(name="tiny", weight_version=3)), generator


def _verdict(chunk: str) -> str:
    if "mute" in chunk:
        return "glance at it"
    return "so \\boxed{Negative}" if "bad" in chunk else "so \\boxed{Positive}"


async def test_verdicts_come_in_the_order_of_the_steps(prompts: PromptFormat) -> None:
    service, generator = _service(prompts, _verdict)
    request = JudgeRequest(problem="p", steps=["slow good", "bad", "mute", "good"], votes=3)
    answer = await service.answer(request)
    assert [s.verdict for s in answer.steps] == ["Positive", "Negative", None, "Positive"]
    assert [s.score for s in answer.steps] == [1.0, 0.0, None, 1.0]
    assert [s.text for s in answer.steps] == request.steps
    assert answer.steps[2].votes == [None, None, None]
    assert answer.first_negative == 1
    assert answer.model == ModelInfo(name="tiny", weight_version=3)
    assert len(generator.asked) == 4
    assert answer.usage.judge_tokens == sum(s.tokens for s in answer.steps) > 0
    assert answer.usage.prompt_tokens == sum(
        len(prompts.judge_ids("p", request.steps[:i], step)) for i, step in enumerate(request.steps)
    )


async def test_a_step_without_verdict_is_no_negative(prompts: PromptFormat) -> None:
    service, generator = _service(prompts, _verdict)
    request = JudgeRequest(problem="p", steps=["mute", "good"], stop_at_first_negative=True)
    answer = await service.answer(request)
    assert answer.first_negative == -1
    assert len(generator.asked) == 2


async def test_stopping_at_the_first_negative_asks_no_further(prompts: PromptFormat) -> None:
    service, generator = _service(prompts, _verdict)
    request = JudgeRequest(problem="p", steps=["good", "bad", "good"], stop_at_first_negative=True)
    answer = await service.answer(request)
    assert (len(answer.steps), answer.first_negative) == (2, 1)
    assert generator.asked == ["good", "bad"]
    assert answer.usage.prompt_tokens == sum(
        len(prompts.judge_ids("p", ["good", "bad"][:i], step))
        for i, step in enumerate(["good", "bad"])
    )


async def test_a_failing_engine_fails_the_request_and_drops_the_rest(
    prompts: PromptFormat,
) -> None:
    def answer(chunk: str) -> str:
        raise EngineFailure("the engine is gone: EngineDeadError")

    service, generator = _service(prompts, answer)
    with pytest.raises(EngineFailure, match=r"steps\.1: the engine is gone: EngineDeadError"):
        await service.answer(JudgeRequest(problem="p", steps=["slow good", "bad"]))
    assert generator.cancelled == ["slow good"]


async def test_too_long_input_names_tokens_and_limit(prompts: PromptFormat) -> None:
    service, generator = _service(prompts, _verdict)
    limit = MAX_MODEL_LEN - MAX_TOKENS
    tokens = len(prompts.encode("7" * 600))
    with pytest.raises(UserError, match=f"problem: has {tokens} tokens, the limit is {limit}"):
        await service.answer(JudgeRequest(problem="7" * 600, steps=["x"]))
    with pytest.raises(UserError, match=r"steps\.1: .* tokens, the limit is"):
        await service.answer(JudgeRequest(problem="p", steps=["x", "7" * 600, "y"]))
    assert not generator.asked


def test_a_response_is_cut_at_its_tags() -> None:
    text = "<chunk>one\n</chunk> \n<chunk>two\n</chunk>\\boxed{2}"
    request = JudgeRequest(problem="p", response=text)
    assert steps_of(request) == ["one\n", "two\n\\boxed{2}"]


def test_a_response_without_tags_is_cut_at_blank_lines() -> None:
    request = JudgeRequest(problem="p", response="one\nmore\n\ntwo\n\n\nthree")
    assert steps_of(request) == ["one\nmore\n\n", "two\n\n\n", "three"]


async def test_options_of_a_request_reach_the_sampling(prompts: PromptFormat) -> None:
    service, generator = _service(prompts, _verdict)
    request = JudgeRequest(problem="p", steps=["good"], temperature=0, max_tokens=5, votes=2)
    await service.answer(request)
    await service.answer(JudgeRequest(problem="p", steps=["good"]))
    first, second = generator.samplings  # greedy votes would all be the same one
    assert (first.temperature, first.max_tokens, first.n, first.top_logprobs) == (0, 5, 1, 8)
    assert (second.temperature, second.max_tokens, second.n) == (1, MAX_TOKENS, 1)
    assert second.top_logprobs > 0  # a lone vote tells how sure it is
    with pytest.raises(UserError, match="max_tokens: is 65, this server's limit is 64"):
        await service.answer(JudgeRequest(problem="p", steps=["good"], max_tokens=65))


async def test_scores_alone_have_no_texts(prompts: PromptFormat) -> None:
    service, _ = _service(prompts, _verdict)
    (step,) = (
        await service.answer(JudgeRequest(problem="p", steps=["bad"], score_only=True))
    ).steps
    assert (step.verdict, step.score, step.text, step.analysis) == ("Negative", 0.0, None, None)


async def test_a_number_is_asked_for_until_there_is_a_verdict(prompts: PromptFormat) -> None:
    answers = iter(["glance", "glance", "so \\boxed{Positive}"])
    service, generator = _service(prompts, lambda _: next(answers))
    response = await service.answer(ScoreRequest(problem="p", steps=["good"]))
    assert response.steps[0].score == 1.0
    assert len(generator.asked) == 3
    assert response.usage.judge_tokens == len(prompts.encode("glance")) * 2 + len(
        prompts.encode("so \\boxed{Positive}")
    )
    service, generator = _service(prompts, lambda _: "glance")
    response = await service.answer(ScoreRequest(problem="p", steps=["good"]))
    assert response.steps[0].score is None
    assert len(generator.asked) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "neither given"),
        ({"steps": ["a"], "response": "<chunk>a</chunk>"}, "both given"),
        ({"steps": ["a", " \n"]}, r"steps\.1: is ' \\n'"),
        ({"steps": ["<chunk>a</chunk>"]}, r"steps\.0: has chunk tags"),
        ({"response": "<chunk>a</chunk><chunk> </chunk>"}, r"response\.1: is ' '"),
        ({"response": "<chunk>a"}, "response: missing closing tag"),
        ({"response": "a</chunk>"}, "response: unbalanced"),
        ({"response": "<chunk>a<chunk>b</chunk></chunk>"}, "response: nested"),
        ({"response": " \n\n "}, "response: is blank"),
        ({"response": "<chunk>a</chunk>" * 513}, "513 steps, the limit is 512"),
    ],
)
def test_steps_that_cannot_be_read_are_explained(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        steps_of(JudgeRequest(problem="p", **fields))
