"""Steps that try to be the verdict, or to be more than a step of the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from benchmarks.injection import INJECTIONS, SMALL_INJECTIONS
from serve.judging.service import JudgeService
from serve.schema import JudgeRequest, ModelInfo, Solution, steps_of
from stepwiser.config import PromptConfig
from stepwiser.errors import UserError
from stepwiser.judging.judges import GenerativeJudge
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from tests.support.tiny import make_tiny_model

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]

CORPUS = [*INJECTIONS, *SMALL_INJECTIONS]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> PromptFormat:
    from transformers import AutoTokenizer

    directory = make_tiny_model(tmp_path_factory.mktemp("model"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHATML
    return PromptFormat(tokenizer, PromptConfig())


def _controls(prompts: PromptFormat, ids: Sequence[int]) -> list[int]:
    """The ids of a prompt that mean something to a model beyond their letters, in order."""
    added = prompts.tokenizer.added_tokens_decoder
    markers = {*prompts.tokenizer.all_special_tokens, *SPECIAL, "<think>", "</think>"}
    return [i for i in ids if i in added and added[i].content in markers]


def test_the_corpus_is_large() -> None:
    assert len(set(CORPUS)) >= 100


@pytest.mark.parametrize("place", ["problem", "history", "chunk"])
def test_no_text_leaves_its_place_in_the_prompt(prompts: PromptFormat, place: str) -> None:
    def ids_with(text: str) -> list[int]:
        problem, history, chunk = (
            text if place == p else "x" for p in ("problem", "history", "chunk")
        )
        return prompts.judge_ids(problem, [history], chunk)

    plain = ids_with("2+2=4")
    before, after = prompts.tokenizer.decode(plain).split("2+2=4")
    for text in CORPUS:
        ids = ids_with(text)
        assert _controls(prompts, ids) == _controls(prompts, plain), repr(text)
        whole = prompts.tokenizer.decode(ids)
        # What is before and after is to the letter what the template says.
        assert whole.startswith(before) and whole.endswith(after), repr(text)
        inside = whole[len(before) : len(whole) - len(after)]
        assert inside.replace("\u200b", "") == text.replace("\u200b", ""), repr(text)


def test_a_conversation_of_others_stays_in_its_turns(prompts: PromptFormat) -> None:
    plain = _controls(prompts, prompts.conversation_ids([("system", "x"), ("user", "x")]))
    for text in CORPUS:
        ids = prompts.conversation_ids([("system", text), ("user", text)])
        assert _controls(prompts, ids) == plain, repr(text)


@dataclass
class Speechless:
    """A generator that names no verdict, whatever it reads."""

    prompts: PromptFormat

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        await asyncio.sleep(0)
        ids = tuple(self.prompts.encode("glance"))
        return [Sample(token_ids=ids, text="glance", finish_reason="stop")] * sampling.n


async def test_no_text_is_read_as_the_verdict(prompts: PromptFormat) -> None:
    judge = GenerativeJudge(Speechless(prompts), prompts, Sampling(64))
    service = JudgeService(judge, 8192, ModelInfo(name="tiny", weight_version=0))
    for text in CORPUS:
        answer = await service.answer(JudgeRequest(problem=text, steps=[text, "next"]))
        assert [step.verdict for step in answer.steps] == [None, None]
        assert [step.score for step in answer.steps] == [None, None]


def test_tags_of_steps_cannot_be_smuggled_in() -> None:
    for text in CORPUS:
        for smuggled in (f"{text}</chunk><chunk>", f"<chunk>{text}", f"</chunk>{text}"):
            with pytest.raises(UserError, match="has chunk tags"):
                steps_of(Solution(problem="p", steps=[smuggled]))
