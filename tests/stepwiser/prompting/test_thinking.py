"""Models that think before they answer: what is read, from where on, and what is counted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from stepwiser.annotation.annotator import Annotator
from stepwiser.annotation.stopping import stopping_plan
from stepwiser.config import PromptConfig
from stepwiser.config.annotation import AnnotateConfig, LabelConfig
from stepwiser.data.records import Problem
from stepwiser.data.verifiers import make_checker
from stepwiser.judging.judges import GenerativeJudge
from stepwiser.prompting.chunks import (
    ChunkStream,
    explain_malformed,
    is_exact_segmentation,
    parse_chunks,
)
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.prompting.segmentation import segment_all
from stepwiser.prompting.thinking import answer_of, answer_start, open_at_end, thoughts_of
from stepwiser.prompting.verdicts import parse_verdict, positive_probability
from stepwiser.search.policy import ChunkSampler
from stepwiser.training.rewards import verdict_only_reward
from tests.stepwiser.prompting.templates import CORPUS
from tests.support.tiny import _tokenizer

CHUNKS = "<chunk>64+21=85\n</chunk><chunk>so \\boxed{85}</chunk>"
LONG = "First <chunk> or </chunk>? \\boxed{9}\n\n" * 40


@pytest.fixture(scope="module")
def tokenizer():
    made = _tokenizer()
    made.add_tokens(["<think>", "</think>"], special_tokens=False)
    return made


def prompts_of(tokenizer, name: str, steps: str = "chunks") -> PromptFormat:
    config = PromptConfig(chat_template=CORPUS[name], steps=steps)  # type: ignore[arg-type]
    return PromptFormat(tokenizer, config)


def sample_of(prompts: PromptFormat, text: str, reason: str = "stop") -> Sample:
    return Sample((*prompts.encode(text), prompts.eos_token_id), text, reason)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", 0),
        ("plain <think> and </think>", 0),  # quoted, not thought
        ("<think></think>", 15),
        ("\n <think>a</think>b", 18),
        ("<think>a <think> b</think> c </think>", 26),
        ("[THINK]a</think>[/THINK]b", 24),
        ("<thought>a</thought>", 20),
        ("<think>a", None),
        ("<think>a</thinking>", None),
        ("a</think>b", 9),  # opened by the prompt
        ("a</think>b</think>c", 9),
    ],
)
def test_where_an_answer_starts(text: str, start: int | None) -> None:
    assert answer_start(text) == start
    assert answer_of(text) == ("" if start is None else text[start:])


def test_what_is_thought_and_what_a_prompt_opens() -> None:
    assert thoughts_of("<think>\n\n</think>\n\nx") == ""
    assert thoughts_of("<think>a") == thoughts_of("a</think>b") == "a"
    assert thoughts_of("no thinking") == ""
    assert open_at_end("<a><think>\n") == "<think>\n" and open_at_end("<think> x") == ""
    assert open_at_end("<think>\n\n</think>\n\n") == ""


@pytest.mark.parametrize(
    "head", ["<think>\n\n</think>\n\n", f"<think>{LONG}</think>", "a </think>\n"]
)
def test_chunks_after_thinking(head: str) -> None:
    parsed = parse_chunks(head + CHUNKS)
    assert parsed is not None and explain_malformed(head + CHUNKS) == ""
    assert parsed.texts == ("64+21=85\n", "so \\boxed{85}")
    assert [(head + CHUNKS)[:end].endswith("</chunk>") for end in parsed.ends] == [True, True]
    assert parsed.ends[-1] == len(head + CHUNKS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>" + CHUNKS, "thinking never ends: no </think>"),
        ("<think>", "thinking never ends"),
        ("<thin", "no chunk"),
        ("<think>a</think> well " + CHUNKS, "text before the first chunk"),
        (CHUNKS[:24] + "<think>a</think>" + CHUNKS, "text between chunks"),
        ("<think>a</think>", "no chunk"),
    ],
)
def test_malformed_thinking_has_its_reason(text: str, reason: str) -> None:
    assert parse_chunks(text) is None
    assert explain_malformed(text).startswith(reason)


@pytest.mark.parametrize(
    "text",
    [
        "<think>\n a <chunk></think>\n" + CHUNKS,
        " \n<thinking>a</think</thinking>" + CHUNKS,
        "<think>never <chunk>",
        "<think",
        "a</think>" + CHUNKS,
    ],
)
def test_a_stream_agrees_however_the_text_is_cut(text: str) -> None:
    rng = random.Random(1)
    for _ in range(200):
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(12)))
        stream = ChunkStream()
        for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
            stream.feed(text[a:b])
        stream.close()
        assert stream.problem == explain_malformed(text)
        if parsed := parse_chunks(text):
            assert (tuple(stream.texts), tuple(stream.ends)) == (parsed.texts, parsed.ends)
            assert stream.open_text == parsed.tail


@pytest.mark.parametrize("steps", ["chunks", "paragraphs"])
@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("Qwen3", "<think>\n\n</think>\n\n"),
        ("Qwen3", f"<think>\n{LONG}</think>\n\n"),
        ("DeepSeek-R1", f"{LONG}</think>\n\n"),
        ("DeepSeek-R1", "<think>\nagain</think>\n\n"),
        ("DeepSeek-R1", "\n</think>\n\n"),
        ("ChatML", "<think>a</think>"),
    ],
)
def test_prefixes_hold_the_thinking_and_steps_do_not(tokenizer, name, head, steps) -> None:
    prompts = prompts_of(tokenizer, name, steps)
    body = CHUNKS if steps == "chunks" else "64+21=85\n\nso \\boxed{85}"
    sample = sample_of(prompts, head + body)
    (heard,) = prompts.heard([sample])
    assert prompts.heard([heard]) == [heard]
    for given in (sample, heard):
        found = prompts.split(given)
        assert "".join(found.texts).strip().startswith("64+21=85")
        first = prompts.decode(sample.token_ids[: found.token_ends[0]])
        assert first.startswith(head) and "64+21=85" in first and "so" not in first[len(head) :]
        assert prompts.answer_of_prefix(sample.token_ids[: found.token_ends[0]]).strip() in body


@pytest.mark.parametrize("name", ["DeepSeek-R1", "Qwen3"])
def test_thinking_without_end_is_malformed_for_that(tokenizer, name: str) -> None:
    prompts = prompts_of(tokenizer, name)
    text = LONG + CHUNKS if name == "DeepSeek-R1" else "<think>" + CHUNKS
    with pytest.raises(ValueError, match="^thinking never ends$"):
        prompts.split_text(sample_of(prompts, text))
    with pytest.raises(ValueError, match="^cut at the token limit while thinking$"):
        prompts.split_text(sample_of(prompts, text, "length"))
    with pytest.raises(ValueError, match="^cut at the token limit$"):
        prompts.split_text(sample_of(prompts, "</think><chunk>a", "length"))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("<think>\n\n</think>\n\\boxed{Positive}", True),
        ("<think>\\boxed{Positive}</think> \\boxed{Negative}", False),
        ("<think>\\boxed{Positive}</think> I cannot tell", None),
        ("<think>\\boxed{Positive}", None),
        ("hm \\boxed{Positive}</think>", None),
        ("hm \\boxed{Positive}</think>\\boxed{Negative}", False),
        ("It says <think>, so \\boxed{Negative}", False),
    ],
)
def test_a_verdict_is_said_after_the_thinking(text: str, verdict: bool | None) -> None:
    assert parse_verdict(text) is verdict


def test_a_bare_verdict_may_follow_an_empty_block_and_no_thought() -> None:
    assert verdict_only_reward("<think>\n\n</think>\n\n\\boxed{Negative}", False) == 1.0
    assert verdict_only_reward("<think>hm</think>\\boxed{Negative}", False) == -1.0
    assert verdict_only_reward("<think>\\boxed{Negative}", False) == -1.0


def test_the_probability_is_that_of_the_verdict_and_not_of_a_thought() -> None:
    words = ["<think>", "\\boxed{", "Positive", "}", "</think>", "\\boxed{", "Negative", "}"]
    top: list[dict[int, float]] = [{i: 0.0} for i in range(len(words))]
    sample = Sample(tuple(range(8)), "".join(words), "stop", None, tuple(top))
    assert positive_probability(sample, words.__getitem__) == 0.0
    silent = replace(sample, token_ids=tuple(range(5)), top_logprobs=tuple(top[:5]))
    assert positive_probability(silent, words.__getitem__) is None


class Scripted:
    """Answers with texts in turn, as the engines do; keeps what it was asked."""

    def __init__(self, prompts: PromptFormat, *texts: str) -> None:
        self.prompts, self.texts = prompts, list(texts)
        self.asked: list[tuple[str, Sampling]] = []

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        self.asked.append((self.prompts.tokenizer.decode(list(prompt_ids)), sampling))
        samples = []
        for _ in range(sampling.n):
            text, cut = self.texts.pop(0), False
            if found := [text.find(s) + len(s) for s in sampling.stop if s in text]:
                self.texts.insert(0, text[min(found) :])
                text = text[: min(found)]
            ids = self.prompts.encode(text)
            if len(ids) > sampling.max_tokens:
                ids, cut = ids[: sampling.max_tokens], True
                text = self.prompts.decode(ids)
            samples.append(Sample(tuple(ids), text, "length" if cut else "stop"))
        return samples


@pytest.mark.parametrize("name", ["DeepSeek-R1", "Qwen3"])
def test_a_judge_that_thinks(tokenizer, name: str) -> None:
    prompts = prompts_of(tokenizer, name)
    opened = "" if prompts.opening else "<think>\n"
    judge = GenerativeJudge(
        Scripted(
            prompts,
            f"{opened}is it \\boxed{{Positive}}?\n</think>\n\nNo: \\boxed{{Negative}}",
            f"{opened}\\boxed{{Positive}} \\boxed{{Positive}} and so on",
        ),
        prompts,
        Sampling(200, n=2),
    )
    verdict = asyncio.run(judge.judge("1+1?", [], "2"))
    assert verdict.votes == (False, None) and verdict.verdict is False
    assert verdict.unfinished == 1 and "No: " in verdict.analysis


def test_a_forced_beginning_comes_after_the_thinking(tokenizer) -> None:
    prompts = prompts_of(tokenizer, "DeepSeek-R1")
    engine = Scripted(prompts, "good \\boxed{Positive}")
    judge = GenerativeJudge(engine, prompts, Sampling(50), force="I say ")
    assert asyncio.run(judge.judge("1+1?", [], "2")).verdict is True
    assert engine.asked[0][0].endswith("<think>\n\n</think>\n\nI say ")


@pytest.mark.parametrize("steps", ["chunks", "paragraphs"])
@pytest.mark.parametrize("name", ["DeepSeek-R1", "Qwen3"])
def test_a_search_takes_the_first_step_after_the_thinking(tokenizer, name, steps) -> None:
    prompts = prompts_of(tokenizer, name, steps)
    opened = "" if prompts.opening else "<think>\n"
    thought = f"{opened}<chunk>a</chunk>\n\nmaybe \\boxed{{3}}\n</think>\n\n"
    body = CHUNKS if steps == "chunks" else "64+21=85\n\nso \\boxed{85}"
    engine = Scripted(prompts, thought + body)
    sampler = ChunkSampler(engine, prompts, 400, 1.0)
    problem = Problem("p", "q", "85")
    first = asyncio.run(sampler.next_chunk(problem, ()))
    assert answer_of(first.text).strip() == first.text.strip() and "64+21=85" in first.text
    assert "maybe" not in first.text and not first.finished
    assert prompts.decode(first.token_ids).startswith(thought)
    second = asyncio.run(sampler.next_chunk(problem, first.token_ids))
    assert second.finished and "\\boxed{85}" in second.text


def test_a_search_ends_where_the_thinking_takes_all_room(tokenizer) -> None:
    prompts = prompts_of(tokenizer, "DeepSeek-R1")
    sampler = ChunkSampler(Scripted(prompts, LONG * 3), prompts, 60, 1.0)
    candidate = asyncio.run(sampler.next_chunk(Problem("p", "q", "85"), ()))
    assert candidate.finished and candidate.text == "" and len(candidate.token_ids) == 60


def test_annotation_of_a_policy_that_thinks(tokenizer) -> None:
    prompts = prompts_of(tokenizer, "DeepSeek-R1")
    right = "I guess \\boxed{1}</think>\n<chunk>64+21=85\n</chunk><chunk>so \\boxed{85}</chunk>"
    endless = "surely \\boxed{85} <chunk>\\boxed{85}</chunk>"
    rest = "<chunk>so \\boxed{85}</chunk>"
    engine = Scripted(prompts, right, endless, *[rest] * 8)
    config = AnnotateConfig(responses=2, rollouts=8, max_tokens=300, trajectories_per_problem=2)
    annotator = Annotator(
        engine,
        prompts,
        make_checker("exact", 1.0),
        config,
        stopping_plan(config, LabelConfig()),
        seed=0,
    )
    result = asyncio.run(annotator.annotate(Problem("p", "q", "85")))
    assert result.counts["right_responses"] == 1, "a box in endless thinking is no answer"
    assert result.counts["malformed: thinking never ends"] == 1
    assert result.counts["unfinished_thinking"] == 1
    (trajectory,) = result.trajectories
    assert trajectory.chunks == ["64+21=85\n", "so \\boxed{85}"]
    assert trajectory.final_answer == "85"
    assert engine.asked[-1][0].endswith("<think>\n" + right.partition("<chunk>so")[0])
    assert result.values[0].successes == result.values[0].trials


def test_the_segmenter_sees_the_answer_only() -> None:
    class Lines:
        async def segment(self, response: str) -> str | None:
            assert "think" not in response
            return "".join(f"<chunk>{line}</chunk>" for line in response.splitlines(keepends=True))

    text = "<think>\na\n\nb</think>\n\nx\ny"
    (made,) = asyncio.run(segment_all(Lines(), [text]))
    assert made == "<think>\na\n\nb</think>\n\n<chunk>x\n</chunk><chunk>y</chunk>"
    assert is_exact_segmentation(text, made)


@pytest.mark.parametrize("name", ["DeepSeek-R1", "Qwen3", "ChatML"])
def test_what_a_policy_learns_is_read_back(tokenizer, name: str) -> None:
    """The prompt's opening is not learnt twice, and a text without thinking closes it."""
    prompts = prompts_of(tokenizer, name)
    for text in (CHUNKS, "<think>\na</think>" + CHUNKS):
        ids = prompts.response_ids(text)
        assert ids[-1] == prompts.eos_token_id
        said = prompts.decode(ids)
        assert parse_chunks(prompts.opening + said) is not None
        assert (prompts.opening + said).count("<think>") == ("<think>" in text or name[0] == "D")
        assert prompts.split(Sample(tuple(ids), said, "stop")).texts[0] == "64+21=85\n"
    ids, steps = prompts.from_steps(["a\n", "b"])
    said = prompts.decode(ids)
    assert said.startswith(prompts.closing)
    again = prompts.split(Sample(tuple(ids), said, "stop"))
    assert (again.texts, again.token_ends) == (steps.texts, steps.token_ends)


def test_markers_that_are_special_tokens_are_seen() -> None:
    """Decoding without special tokens would run thoughts and answer together."""
    made = _tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    prompts = PromptFormat(made, PromptConfig(chat_template=CORPUS["ChatML"]))
    text = "<think>a \\boxed{1} 😀</think>" + CHUNKS
    ids = made.encode(text)
    assert prompts.decode(ids) == text
    found = prompts.split(Sample(tuple(ids), text, "stop"))
    assert prompts.decode(ids[: found.token_ends[0]]) == text[: text.index("<chunk>so")]
