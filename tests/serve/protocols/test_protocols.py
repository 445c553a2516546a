"""Bodies of other programs: what is read in them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from serve.judging.scores import reduce_scores
from serve.protocols.chat import ChatRequest
from serve.protocols.conversation import exchange_of_text, problem_of_prompt
from serve.protocols.pooling import PairRequest, PoolingRequest
from serve.protocols.rewards import OpenRlhfRequest, SlimeRequest
from stepwiser.errors import UserError

LLAMA = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n2+2=4\n\nso 4<|eot_id|>"
)
CHATML = (
    "<|im_start|>system\nBe right.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
    "<|im_start|>assistant\n2+2=4\n\nso 4<|im_end|>\n"
)


@pytest.mark.parametrize("text", [CHATML, LLAMA, CHATML.removesuffix("<|im_end|>\n")])
def test_chats_are_read(text: str) -> None:
    exchange = exchange_of_text(text)
    assert exchange.problem == "2+2?"
    assert exchange.solution("x").steps == ["2+2=4\n\n", "so 4"]


def test_a_prompt_tells_where_the_response_begins() -> None:
    prompt, response = CHATML.split("2+2=4")
    exchange = exchange_of_text(CHATML, prompt)
    assert (exchange.problem, exchange.response) == ("2+2?", "2+2=4" + response.split("<|im")[0])
    plain = exchange_of_text("Q: 2+2?\nA: 4</s>", "Q: 2+2?\nA: ")
    assert (plain.problem, plain.response) == ("Q: 2+2?\nA:", "4")
    assert problem_of_prompt(LLAMA) == "2+2?"
    with pytest.raises(UserError, match="cannot be told apart"):
        exchange_of_text("2+2? 4", "other")


def test_openrlhf_has_many() -> None:
    request = OpenRlhfRequest.model_validate(
        {"query": ["p: a", "q: b"], "prompts": ["p:", "q:"], "labels": ["1", "2"]}
    )
    assert [s.problem for s in request.solutions()] == ["p:", "q:"]
    assert [s.steps for s in request.solutions()] == [[" a"], [" b"]]
    with pytest.raises(UserError, match="prompts: has 1 texts and query 2"):
        OpenRlhfRequest(query=["a", "b"], prompts=["a"]).solutions()
    with pytest.raises(UserError, match=r"query\.0: is blank"):
        OpenRlhfRequest(query=["p:"], prompts=["p:"]).solutions()


def test_slime_sends_text_or_messages() -> None:
    for prompt in (
        CHATML.split("2+2=4")[0],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "2+2?"}],
    ):
        body = {"prompt": prompt, "response": "a\n\nb", "label": None}
        solution = SlimeRequest.model_validate(body).solution()
        assert (solution.problem, solution.steps) == ("2+2?", ["a\n\n", "b"])


def test_step_markers_of_classifiers_are_steps() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
        {"role": "assistant", "content": "a<extra_0>b\n\nc<extra_0>"},
    ]
    (solution,) = PoolingRequest.model_validate({"messages": messages}).solutions()
    assert solution.steps == ["a", "b\n\nc"]
    messages[1]["content"] = "a<extra_0>b"
    with pytest.raises(UserError, match="goes on after the last <extra_0>"):
        PoolingRequest.model_validate({"messages": messages}).solutions()
    with pytest.raises(UserError, match="has to be|have to be"):
        PoolingRequest.model_validate({"messages": messages[:1]}).solutions()
    with pytest.raises(UserError, match="exactly one"):
        PoolingRequest.model_validate({"messages": messages, "input": "x"}).solutions()


@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")]
)
def test_pairs_have_many_names(names: tuple[str, str]) -> None:
    body: dict[str, Any] = {names[0]: "2+2?", names[1]: ["a", "b\n\nc"]}
    solutions = PairRequest.model_validate(body).solutions()
    assert [s.steps for s in solutions] == [["a"], ["b\n\n", "c"]]
    assert {s.problem for s in solutions} == {"2+2?"}
    with pytest.raises(UserError, match="2 texts and text_2 1"):
        PairRequest.model_validate({names[0]: ["a", "b"], names[1]: ["c"]}).solutions()
    with pytest.raises(ValidationError, match="needs text_1 and text_2"):
        PairRequest.model_validate({names[0]: "a"})


def test_conversations_end_with_the_user() -> None:
    chat = ChatRequest.model_validate({"messages": [{"role": "user", "content": "a"}]})
    assert chat.turns() == [("user", "a")]
    for role, message in (("assistant", "the last one is the user's"), ("tool", "is 'tool'")):
        with pytest.raises(UserError, match=message):
            ChatRequest.model_validate({"messages": [{"role": role, "content": "a"}]}).turns()
    with pytest.raises(ValidationError, match="top_p"):
        ChatRequest.model_validate({"messages": [{"role": "user", "content": "a"}], "top_p": 0.5})


def test_reductions_by_hand() -> None:
    scores = [0.5, 1.0, 0.25]
    assert reduce_scores(scores, "mean") == pytest.approx(1.75 / 3)
    assert reduce_scores(scores, "min") == 0.25
    assert reduce_scores(scores, "product") == 0.125
    assert reduce_scores(scores, "last") == 0.25
