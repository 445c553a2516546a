"""OpenAI's chat completions over the judge's model.

For programs that write the judge's prompt themselves: a generative reward of verl, an evaluation
harness, any client of the OpenAI API.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from serve.protocols.conversation import Message
from serve.schema import MAX_VOTES, AnyText
from stepwiser.errors import UserError


class ChatRequest(BaseModel):
    """A conversation that ends with the user. Fields that are not here are not supported."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "Is 2+2=5 right?"}], "max_tokens": 64}
            ]
        },
    )

    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=64)
    n: int = Field(1, ge=1, le=MAX_VOTES)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: Literal[1, None] = Field(1, description="The judge is sampled from all of it.")
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: AnyText | list[AnyText] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: StrictBool = False
    tools: None = Field(None, description="Not supported.")

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Raises UserError for one that is empty, or too many."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > 4 or any(not stop or len(stop) > 64 for stop in stops):
            raise UserError("stop: give up to 4 strings of 1 to 64 characters")
        return stops

    def turns(self) -> list[tuple[str, str]]:
        """Role and text of each message; raises UserError for an order no template takes."""
        turns = [(message.role, message.text) for message in self.messages]
        for i, (role, _) in enumerate(turns):
            if role not in ("system", "user", "assistant"):
                raise UserError(f"messages.{i}.role: is {role!r}; system, user or assistant")
        if turns[-1][0] != "user":
            raise UserError(f"messages: end with {turns[-1][0]}; the last one is the user's")
        return turns


class ChatChoice(BaseModel):
    """One sample."""

    text: str
    finish_reason: Literal["stop", "length"]


class ChatResult(BaseModel):
    """What the replica gives back."""

    choices: list[ChatChoice]
    model: str
    prompt_tokens: int
    completion_tokens: int


def completion_body(result: ChatResult) -> dict[str, Any]:
    """An object `chat.completion`."""
    return _head("chat.completion", result.model) | {
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": choice.text},
                "finish_reason": choice.finish_reason,
                "logprobs": None,
            }
            for i, choice in enumerate(result.choices)
        ],
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "total_tokens": result.prompt_tokens + result.completion_tokens,
        },
    }


def chunk_bodies(
    head: dict[str, Any], delta: str, finish_reasons: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Objects `chat.completion.chunk`: a piece of the one sample that streams, and its end."""
    pieces = [_chunk(head, {"role": "assistant", "content": delta}, None)] if delta else []
    return pieces + [_chunk(head, {}, reason) for reason in finish_reasons]


def chunk_head(model: str) -> dict[str, Any]:
    """What all chunks of one answer share."""
    return _head("chat.completion.chunk", model)


def _chunk(head: dict[str, Any], delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def _head(kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }
