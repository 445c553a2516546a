"""Rewards in the shapes of trainers that call a server: OpenRLHF and slime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from serve.protocols.conversation import (
    Exchange,
    Message,
    exchange_of_text,
    problem_of_prompt,
)
from serve.schema import MAX_ITEMS, AnyText, Solution
from stepwiser.errors import UserError


class OpenRlhfRequest(BaseModel):
    """What `--reward.remote_url` (or `--remote_rm_url`) of OpenRLHF posts for a batch."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "query": ["Question: 2+2+3?\nAnswer: 2+2=4\n\n4+3=7"],
                    "prompts": ["Question: 2+2+3?\nAnswer: "],
                }
            ]
        },
    )

    query: list[AnyText] = Field(
        min_length=1, max_length=MAX_ITEMS, description="Prompt and response."
    )
    prompts: list[AnyText] | None = Field(
        None, description="The prompts alone; without them `query` needs chat markers."
    )

    def solutions(self) -> list[Solution]:
        """Raises UserError, naming the query that cannot be read."""
        if self.prompts is not None and len(self.prompts) != len(self.query):
            raise UserError(
                f"prompts: has {len(self.prompts)} texts and query {len(self.query)}; send as many"
            )
        prompts: Sequence[str | None] = self.prompts or [None] * len(self.query)
        return [
            exchange_of_text(query, prompt).solution(f"query.{i}")
            for i, (query, prompt) in enumerate(zip(self.query, prompts, strict=True))
        ]


class SlimeRequest(BaseModel):
    """What slime's `--rm-type remote_rm` posts for one sample; its label is not needed."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [{"prompt": "2+2+3?", "response": "2+2=4\n\n4+3=7", "label": "7"}]
        },
    )

    prompt: AnyText | list[Message]
    response: AnyText

    def solution(self) -> Solution:
        """Raises UserError for a prompt without a user message, or a response without steps."""
        if isinstance(self.prompt, str):
            problem = problem_of_prompt(self.prompt)
        else:
            users = [message.text for message in self.prompt if message.role == "user"]
            if not users:
                raise UserError("prompt: has no message of the user")
            problem = users[-1]
        return Exchange(problem, self.response).solution("response")


def openrlhf_body(numbers: Sequence[float], first_negatives: Sequence[int]) -> dict[str, Any]:
    """Rewards, the same as scores for its filter, and a figure for its log."""
    return {
        "rewards": list(numbers),
        "scores": list(numbers),
        "extra_logs": {"judge_no_negative": [float(i < 0) for i in first_negatives]},
    }
