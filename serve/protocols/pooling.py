"""vLLM's shapes for reward models: `/pooling`, `/classify` and `/score`.

A client of a classifier (a process reward model behind `vllm serve`) gets from the judge what it
got from the classifier: for every step the probabilities of wrong and right.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve.protocols.conversation import (
    Exchange,
    Message,
    exchange_of_messages,
    exchange_of_text,
)
from serve.schema import MAX_ITEMS, AnyText, JudgeResponse, ModelInfo, Solution
from stepwiser.errors import UserError

LABELS = ("Negative", "Positive")
"""In the order of the probabilities."""


class PoolingRequest(BaseModel):
    """Of `/pooling` and `/classify`: one conversation, or texts with chat markers in them."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "messages": [
                        {"role": "user", "content": "What is 2+2+3?"},
                        {"role": "assistant", "content": "2+2=4<extra_0>4+3=7<extra_0>"},
                    ]
                }
            ]
        },
    )

    model: str | None = None
    messages: list[Message] | None = None
    input: AnyText | list[AnyText] | None = Field(
        None, description="Texts in ChatML or Llama 3 markers."
    )

    def solutions(self) -> list[Solution]:
        """Raises UserError, naming the input that cannot be read."""
        if (self.messages is None) == (self.input is None):
            raise UserError("messages and input: send exactly one of them")
        if self.messages is not None:
            return [exchange_of_messages(self.messages).solution("messages")]
        inputs = [self.input] if isinstance(self.input, str) else self.input or []
        _limit("input", len(inputs))
        return [exchange_of_text(text).solution(f"input.{i}") for i, text in enumerate(inputs)]


class PairRequest(BaseModel):
    """Of `/score`: problems and solutions, by any of the names that vLLM knows."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [{"text_1": "What is 2+2+3?", "text_2": ["2+2=4\n\n4+3=7", "2+2=5"]}]
        },
    )

    model: str | None = None
    problems: AnyText | list[AnyText]
    responses: AnyText | list[AnyText]

    @model_validator(mode="before")
    @classmethod
    def _by_any_name(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for first, second in (
            ("text_1", "text_2"),
            ("queries", "documents"),
            ("queries", "items"),
            ("data_1", "data_2"),
        ):
            if first in value and second in value:
                return {
                    "model": value.get("model"),
                    "problems": value[first],
                    "responses": value[second],
                }
        raise ValueError("needs text_1 and text_2 (or queries and documents, data_1 and data_2)")

    def solutions(self) -> list[Solution]:
        """One problem stands for all responses. Raises UserError for counts that do not fit."""
        problems = [self.problems] if isinstance(self.problems, str) else self.problems
        responses = [self.responses] if isinstance(self.responses, str) else self.responses
        if len(problems) == 1:
            problems = problems * len(responses)
        if len(problems) != len(responses):
            raise UserError(
                f"text_1 has {len(problems)} texts and text_2 {len(responses)}: send as many, or "
                "one problem"
            )
        _limit("text_2", len(responses))
        return [
            Exchange(problem, response).solution(f"text_2.{i}")
            for i, (problem, response) in enumerate(zip(problems, responses, strict=True))
        ]


def pooling_body(
    scores: Sequence[Sequence[float]], responses: Sequence[JudgeResponse]
) -> dict[str, Any]:
    """For each input ``[steps, 2]``: wrong, right."""
    data = [
        {"index": i, "object": "pooling", "data": [[1 - score, score] for score in row]}
        for i, row in enumerate(scores)
    ]
    return _list("pool", data, responses)


def classify_body(numbers: Sequence[float], responses: Sequence[JudgeResponse]) -> dict[str, Any]:
    """For each input the probabilities of wrong and right of the whole solution."""
    data = [
        {
            "index": i,
            "label": LABELS[number >= 0.5],
            "probs": [1 - number, number],
            "num_classes": len(LABELS),
        }
        for i, number in enumerate(numbers)
    ]
    return _list("classify", data, responses)


def score_body(numbers: Sequence[float], responses: Sequence[JudgeResponse]) -> dict[str, Any]:
    """For each pair its number."""
    data = [{"index": i, "object": "score", "score": n} for i, n in enumerate(numbers)]
    return _list("score", data, responses)


def _list(kind: str, data: list[Any], responses: Sequence[JudgeResponse]) -> dict[str, Any]:
    prompt = sum(response.usage.prompt_tokens for response in responses)
    judge = sum(response.usage.judge_tokens for response in responses)
    model: ModelInfo = responses[0].model
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model.name,
        "data": data,
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": judge,
            "total_tokens": prompt + judge,
        },
    }


def _limit(name: str, count: int) -> None:
    if not 1 <= count <= MAX_ITEMS:
        raise UserError(f"{name}: has {count} texts; send 1 to {MAX_ITEMS}")
