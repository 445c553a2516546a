"""A model's chat template: the one place where messages become the text of a prompt.

Templates of public models move system text, drop the thinking of earlier answers, write today's
date, refuse roles, or read a message's content as a list of parts. So nothing is assumed of them:
what a template does with a conversation is looked at when it is loaded (`ChatTemplate`), and a
conversation of several turns is put together from its first prompt and what the template writes
between an answer and the next one (`follow_up`). An earlier answer thus stays in its context as it
was written, and every prompt begins with the one before it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from stepwiser.config.prompts import PromptConfig
from stepwiser.errors import UserError
from stepwiser.prompting.thinking import MARKERS, open_at_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TODAY = date(2025, 1, 1)
"""Of templates that ask for the day: a run has the same prompts tomorrow. `template_variables` has
the name `strftime_now` for another one."""

PROBE = 'probe <1> & "x"\n\n  {{ y }} \\boxed{½}'
"""A user message that a template has to write as it is."""
ANSWER = "answer 7 of 9"
SYSTEM = "system 3 of 9"

_NEAR = 0.85
"""Likeness of two names from which on one is taken for a misspelling of the other, 0 to 1."""

_REMEDY = "give a template of your own as prompts.chat_template, or choose another model"

Message = dict[str, Any]


class ChatTemplate:
    """Renders the messages of one run for one tokenizer.

    Raises UserError, naming the model and what is wrong, where the tokenizer has no template, or
    one that leaves a problem, the system message or an earlier answer out or changes it, or that
    cannot be rendered at all.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PromptConfig) -> None:
        self._tokenizer = tokenizer
        self._system = config.system
        name = tokenizer.name_or_path or "this tokenizer"
        own = config.chat_template
        self._name = f"prompts.chat_template with {name}" if own else f"chat template of {name}"
        self._text = own or _template_of(tokenizer)
        self._variables = _checked_variables(self._name, self._text, config.template_variables)
        self._in_parts = False
        # A template may move the system message to the last turn: in the first prompt it was said.
        self._follow_with_system = False
        self._find_form()
        if config.system is not None:
            self._check_system()
        self.opening = open_at_end(self.prompt(PROBE))
        """What the prompt writes of the answer: the marker that opens its thinking, or nothing."""
        self._check_turns()

    def prompt(self, content: str) -> str:
        """Text of a prompt with one user message, up to where the answer begins."""
        return self._render([*self._head(), self._message("user", content)])

    def conversation(self, turns: Sequence[tuple[str, str]]) -> str:
        """Text of a prompt with whole turns, each a role and a content, the last one the user's.

        A system message of their own goes in place of the run's.
        """
        messages = [self._message(role, content) for role, content in turns]
        head = [] if turns[0][0] == "system" else self._head()
        return self._render([*head, *messages])

    def follow_up(self, contents: Sequence[str]) -> str:
        """What comes after an answer: its end, and the next user message up to the next answer.

        Args:
            contents: the user messages, at least two, each but the last answered.
        """
        messages = self._head() if self._follow_with_system else []
        for content in contents[:-1]:
            messages += [self._message("user", content), self._message("assistant", "+")]
        answer = ANSWER
        while any(answer in content for content in contents):
            answer += "."
        messages[-1] = self._message("assistant", answer)
        text = self._render([*messages, self._message("user", contents[-1])])
        before, found, after = text.rpartition(answer)
        if not found or answer in before:
            raise self._refusal("does not write an earlier answer once and unchanged")
        return after

    @property
    def closing(self) -> str:
        """What ends the thinking that the prompt has opened, so that an answer can follow."""
        return closing_of(self.opening)

    # --- what a template does -------------------------------------------------------------------

    def _find_form(self) -> None:
        """Plain contents, or lists of parts where only these are written."""
        problems = []
        for self._in_parts in (False, True):
            try:
                self._write_probe([])
                return
            except UserError as error:
                problems.append(error)
        for self._in_parts in (False, True):
            try:
                self._write_probe([self._message("system", SYSTEM)])
            except UserError:
                continue
            if self._system is None:
                raise UserError(f"{problems[0]}, or set prompts.system, which it asks for")
            self._follow_with_system = True
            return
        raise problems[0]

    def _write_probe(self, head: list[Message]) -> None:
        if PROBE not in self._render([*head, self._message("user", PROBE)]):
            raise self._refusal("does not write the user's message as it is")

    def _check_system(self) -> None:
        advice = "leave prompts.system out and say it in the other prompts"
        probes = [self._message("system", SYSTEM), self._message("user", PROBE)]
        try:
            text = self._render(probes)
        except UserError as error:
            raise UserError(f"{error}; what it refuses is the system message: {advice}") from error
        if SYSTEM not in text or PROBE not in text:
            raise self._refusal("does not write the system message", advice)

    def _check_turns(self) -> None:
        """The discriminative judge asks several times in one conversation."""
        try:
            after = self.follow_up(["first", PROBE])
        except UserError as error:
            raise UserError(f"{error} (in a conversation of two user messages)") from error
        if PROBE not in after:
            raise self._refusal("does not write a second user message after the first answer")

    # --- rendering ------------------------------------------------------------------------------

    def _head(self) -> list[Message]:
        return [] if self._system is None else [self._message("system", self._system)]

    def _message(self, role: str, content: str) -> Message:
        parts = [{"type": "text", "text": content}] if self._in_parts else content
        return {"role": role, "content": parts}

    def _render(self, messages: list[Message]) -> str:
        try:
            text: Any = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._text,
                add_generation_prompt=True,
                tokenize=False,
                **self._variables,
            )
        except Exception as error:  # a template is a program: whatever it raises is its answer
            raise self._refusal(f"cannot be used: {type(error).__name__}: {error}") from error
        return str(text)

    def _refusal(self, what: str, remedy: str = _REMEDY) -> UserError:
        return UserError(f"{self._name} {what}: {remedy}")


def closing_of(opening: str) -> str:
    """Ends a block of thinking without a thought in it; empty for nothing opened."""
    return f"\n{MARKERS[opening.strip()]}\n\n" if opening else ""


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's own, the default one where it names several."""
    found: Any = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        found = found.get("default")
    if not found:
        raise UserError(
            f"tokenizer of {tokenizer.name_or_path} has no chat template: use an "
            "instruction-tuned model, or give a Jinja file as prompts.chat_template"
        )
    return str(found)


def _checked_variables(name: str, template: str, values: dict[str, Any]) -> dict[str, Any]:
    """What the template is rendered with beside the messages.

    A variable that the template does not read is left to the other models of the run, unless it
    looks like a misspelling of one that it does. Raises UserError for that.
    """
    read = set(re.findall(r"[A-Za-z_]\w*", template))
    for variable in values.keys() - read:
        if near := difflib.get_close_matches(variable, read, n=1, cutoff=_NEAR):
            raise UserError(
                f"prompts.template_variables.{variable}: the {name} has no such variable; "
                f"did you mean {near[0]}?"
            )
    today = values.get("strftime_now")
    try:
        day = TODAY if today is None else date.fromisoformat(today)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"prompts.template_variables.strftime_now={today!r} is no day: write 2025-07-26"
        ) from error
    strftime: Callable[[str], str] = day.strftime
    return {**values, "strftime_now": strftime}
