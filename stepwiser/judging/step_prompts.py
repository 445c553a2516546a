"""How public step scorers read a solution: its token ids, and the positions that hold the scores.

| form | a solution reads | the score of a step stands at |
|---|---|---|
| token_classification | problem, steps, a separator after each | the separator's last token |
| qwen_prm | a chat whose answer has `<extra_0>` after each step | that token |
| math_shepherd | problem, `Step n:` and step, a tag after each | the tag |
| rlhflow | a chat: each step a question, each answer `+` | the token before the answer |
| skywork | problem, a line break, steps, a line break after each | the line break |

What a problem or a step holds of special tokens, or of the form's own mark, is written so that no
tokenizer takes it for one: a solution cannot bring scores of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from stepwiser.errors import UserError
from stepwiser.prompting.verdicts import neutralize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ScorerForm = Literal["token_classification", "qwen_prm", "math_shepherd", "rlhflow", "skywork"]

MARKS: dict[ScorerForm, str] = {
    "token_classification": "\n",
    "qwen_prm": "<extra_0>",
    "math_shepherd": "ки",
    "rlhflow": "+",
    "skywork": "\n",
}
"""What closes a step, unless a model was trained with another mark."""

_QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
"""The system message of their training data."""


@dataclass(frozen=True)
class ScoredText:
    """A solution as its scorer reads it."""

    ids: list[int]
    ends: list[int]
    """For each step the index into ``ids`` whose output is its score, rising."""

    def fitting(self, limit: int) -> ScoredText:
        """What of it a context of so many tokens takes: the scores that lie within."""
        ids = self.ids[:limit]
        return ScoredText(ids, [end for end in self.ends if end < len(ids)])


@dataclass(frozen=True)
class StepPrompts:
    """Renders solutions for one form and tokenizer."""

    form: ScorerForm
    tokenizer: PreTrainedTokenizerBase
    mark: str
    """What closes a step (`MARKS`)."""

    def render(self, problem: str, steps: Sequence[str]) -> ScoredText:
        """Ids and score positions of a solution.

        Raises UserError where the tokenizer does not write the form's mark as the form needs it.
        """
        problem, steps = self._safe(problem), [self._safe(step) for step in steps]
        if self.form == "qwen_prm":
            return self._marked(self._qwen_text(problem, steps), len(steps))
        if self.form == "math_shepherd":
            return self._marked(self._shepherd_text(problem, steps), len(steps))
        if self.form == "rlhflow":
            return self._turns(problem, steps)
        return self._closed(problem, steps)

    @cached_property
    def answers(self) -> tuple[int, int]:
        """Ids of `+` and `-` as they stand at a score, where a form reads scores off words.

        Raises UserError where the tokenizer gives both the same beginning.
        """
        if self.form == "rlhflow":
            question = {"role": "user", "content": "1"}
            start = len(self._chat([question], asks=True))
            found = [
                self._chat([question, {"role": "assistant", "content": word}], asks=False)[start]
                for word in "+-"
            ]
        else:
            found = [self._after_space(word) for word in "+-"]
        if found[0] == found[1]:
            raise UserError(
                f"the tokenizer of {self.tokenizer.name_or_path} writes + and - with the same "
                f"token: the form {self.form} cannot be read with it"
            )
        return found[0], found[1]

    # --- forms ------------------------------------------------------------------------------------

    def _qwen_text(self, problem: str, steps: Sequence[str]) -> str:
        messages = [
            {"role": "system", "content": _QWEN_SYSTEM},
            {"role": "user", "content": problem},
            {"role": "assistant", "content": "".join(step + self.mark for step in steps)},
        ]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False))

    def _shepherd_text(self, problem: str, steps: Sequence[str]) -> str:
        numbered = (
            step.strip() if re.match(r"\s*step\b", step, re.I) else f"Step {i}: {step.strip()}"
            for i, step in enumerate(steps, 1)
        )
        return f"{problem} " + "".join(f"{step} {self.mark}\n" for step in numbered)

    def _marked(self, text: str, steps: int) -> ScoredText:
        """Scores stand at the marks, each one token."""
        # A chat template has written the special tokens that belong at the beginning.
        ids = self.tokenizer.encode(text, add_special_tokens=self.form != "qwen_prm")
        mark = self._after_space(self.mark)
        ends = [i for i, token in enumerate(ids) if token == mark]
        if len(ends) != steps:
            raise UserError(
                f"the tokenizer of {self.tokenizer.name_or_path} writes the mark {self.mark!r} "
                f"{len(ends)} times for {steps} steps: the form {self.form} needs it as one token "
                "of its own; is this model of another form?"
            )
        return ScoredText(ids, ends)

    def _turns(self, problem: str, steps: Sequence[str]) -> ScoredText:
        """Every step is answered with the mark; its score is what the model would answer."""
        messages: list[dict[str, str]] = []
        ids: list[int] = []
        ends = []
        for i, step in enumerate(steps):
            messages.append({"role": "user", "content": step if i else f"{problem} {step}"})
            asked = self._chat(messages, asks=True)
            messages.append({"role": "assistant", "content": self.mark})
            ids = self._chat(messages, asks=False)
            if ids[: len(asked)] != asked:
                raise UserError(
                    f"the chat template of {self.tokenizer.name_or_path} writes an answer otherwise"
                    " than its own beginning of one: the form rlhflow cannot be read with it"
                )
            ends.append(len(asked) - 1)
        return ScoredText(ids, ends)

    def _chat(self, messages: list[dict[str, str]], *, asks: bool) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=asks
        )
        return list(self.tokenizer.encode(str(text), add_special_tokens=False))

    def _closed(self, problem: str, steps: Sequence[str]) -> ScoredText:
        """Every piece is tokenized alone: the mark after a step stays a token of its own."""
        mark = self._plain(self.mark)
        if self.form == "skywork":
            ids = self._plain((self.tokenizer.bos_token or "") + problem + "\n")
            mark = mark[-1:]
        else:
            bos = self.tokenizer.bos_token_id
            ids = ([] if bos is None else [bos]) + self._plain(problem)
        ends = []
        for step in steps:
            ids += self._plain(step) + mark
            ends.append(len(ids) - 1)
        return ScoredText(ids, ends)

    def _after_space(self, text: str) -> int:
        """The last token of a text behind a space: many vocabularies have others for it there."""
        return int(self.tokenizer.encode(f"1 {text}", add_special_tokens=False)[-1])

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    # --- what others wrote ------------------------------------------------------------------------

    def _safe(self, text: str) -> str:
        special = {
            token.content
            for token in self.tokenizer.added_tokens_decoder.values()
            if token.special and len(token.content) > 1
        }
        if self.form == "qwen_prm":
            special.add(self.mark)
        if self.form == "math_shepherd":
            text = text.replace(self.mark, " ")
        return neutralize(text, sorted(special))
