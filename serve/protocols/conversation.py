"""A problem and its solution out of text that other programs have already put into a chat.

Reward clients send what their policy read and wrote: messages, or one text with the markers of a
chat template in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from serve.schema import MAX_STEPS, AnyText, Solution, cut
from stepwiser.errors import UserError

STEP_MARKER = "<extra_0>"
"""What process reward models of the Qwen family want behind every step."""

_TURN = re.compile(
    r"<\|im_start\|>(?P<chatml>user|assistant)\s*\n(?P<chatml_text>.*?)(?:<\|im_end\|>|\Z)"
    r"|<\|start_header_id\|>(?P<llama>user|assistant)<\|end_header_id\|>\s*"
    r"(?P<llama_text>.*?)(?:<\|eot_id\|>|\Z)",
    re.DOTALL,
)
_ENDS = re.compile(r"(?:<\|im_end\|>|<\|eot_id\|>|<\|endoftext\|>|<\|end_of_text\|>|</s>|\s)+\Z")


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: str
    text: AnyText = ""


class Message(BaseModel):
    """One turn of a conversation; other fields of clients are not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    role: str
    content: AnyText | list[Part] = Field(description="A text, or parts of type `text`.")

    @property
    def text(self) -> str:
        """Raises UserError for a part that is no text."""
        if isinstance(self.content, str):
            return self.content
        for part in self.content:
            if part.type != "text":
                raise UserError(f"messages: a part of type {part.type!r}; this judge reads text")
        return "".join(part.text for part in self.content)


@dataclass(frozen=True)
class Exchange:
    """What was asked and what was answered."""

    problem: str
    response: str

    def solution(self, name: str) -> Solution:
        """With steps cut at `STEP_MARKER`, else as `cut` does.

        Raises UserError, calling the response ``name``.
        """
        if STEP_MARKER in self.response:
            pieces = self.response.split(STEP_MARKER)
            last = pieces.pop()
            if last.strip():
                raise UserError(
                    f"{name}: goes on after the last {STEP_MARKER}; put one behind every step"
                )
            steps = pieces
            if len(steps) > MAX_STEPS:
                raise UserError(f"{name}: has {len(steps)} steps, the limit is {MAX_STEPS}")
            for i, step in enumerate(steps):
                if not step.strip():
                    raise UserError(f"{name}: step {i} is blank")
        else:
            steps = cut(self.response, name)
        if not self.problem.strip():
            raise UserError(f"{name}: has no problem before it; send the prompt too")
        return Solution(problem=self.problem, steps=steps)


def exchange_of_messages(messages: Sequence[Message]) -> Exchange:
    """The last user message and what the assistant answered to it; raises UserError."""
    if len(messages) < 2 or messages[-1].role != "assistant" or messages[-2].role != "user":
        raise UserError(
            "messages: end in " + " → ".join(message.role for message in messages[-2:]) + "; the "
            "last two have to be the user's problem and the assistant's solution"
        )
    return Exchange(messages[-2].text, messages[-1].text)


def exchange_of_text(text: str, prompt: str | None = None) -> Exchange:
    """Of a text with chat markers (ChatML, Llama 3), or of a prompt and what follows it.

    Raises UserError where neither tells problem and solution apart.
    """
    if prompt is not None and text.startswith(prompt):
        return Exchange(problem_of_prompt(prompt), _ENDS.sub("", text[len(prompt) :]))
    turns = [
        (match["chatml"] or match["llama"], match["chatml_text"] or match["llama_text"] or "")
        for match in _TURN.finditer(text)
    ]
    if len(turns) < 2 or [role for role, _ in turns[-2:]] != ["user", "assistant"]:
        raise UserError(
            "query: problem and solution cannot be told apart; send the prompt beside it, or the "
            "chat markers of ChatML or Llama 3 in it"
        )
    return Exchange(turns[-2][1].strip(), turns[-1][1])


def problem_of_prompt(prompt: str) -> str:
    """The last user message of a prompt with chat markers; else the prompt as it is."""
    users = [
        match["chatml_text"] or match["llama_text"] or ""
        for match in _TURN.finditer(prompt)
        if (match["chatml"] or match["llama"]) == "user"
    ]
    return users[-1].strip() if users else prompt.strip()
