"""From problems and chunks to the token ids a model reads.

Everything a user supplies is neutralized first: special tokens inside a problem or a judged chunk
never reach the model as special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from stepwiser.config.prompts import PromptConfig
from stepwiser.errors import UserError
from stepwiser.prompting.chat_template import ChatTemplate, closing_of
from stepwiser.prompting.chunks import (
    CLOSE,
    OPEN,
    explain_malformed,
    parse_chunks,
    split_paragraphs,
    strip_tags,
    token_ends,
)
from stepwiser.prompting.generation import Sample
from stepwiser.prompting.hub.files import own_code
from stepwiser.prompting.hub.folders import model_folder
from stepwiser.prompting.thinking import (
    MARKERS,
    UNFINISHED,
    answer_of,
    answer_start,
    is_unfinished,
    open_at_end,
    opening_marker,
)
from stepwiser.prompting.token_text import TokenText
from stepwiser.prompting.verdicts import neutralize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POSITIVE_MARK = "+"
NEGATIVE_MARK = "-"


def _load_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The one that AutoTokenizer gives.

    AutoTokenizer imports torch first: four seconds and 280 MB of every labeler and server. A
    directory that names the generic class needs nobody to choose one.
    """
    settings, vocabulary = (folder / f for f in ("tokenizer_config.json", "tokenizer.json"))
    named = json.loads(settings.read_text()) if settings.is_file() else {}
    if named.get("tokenizer_class") == "TokenizersBackend" and vocabulary.is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    # Said, not left out: transformers would ask on the terminal, and run what a model brings.
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class Steps:
    """A response in steps."""

    texts: list[str]
    """Without tags; what follows the last tag belongs to the last step."""
    token_ends: list[int]
    """For each step, how many leading response ids contain it and what closes it."""


class PromptFormat:
    """The prompts of one run for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PromptConfig) -> None:
        """Raises UserError where the chat template cannot be used (`ChatTemplate`)."""
        self.tokenizer = tokenizer
        self.config = config
        self._template = ChatTemplate(tokenizer, config)
        self._text = TokenText(tokenizer)
        markers = {*MARKERS, *MARKERS.values()}
        added = {
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special or token.content in markers
        }
        self._special = tuple(sorted({*tokenizer.all_special_tokens, *added}))

    @classmethod
    def from_model_dir(
        cls, model: str, config: PromptConfig, trust_remote_code: bool = False
    ) -> PromptFormat:
        """Load the tokenizer of a model directory or Hub name.

        Raises UserError where it cannot be had or loaded, or its chat template cannot be used.
        """
        folder = model_folder(model, weights=False)
        try:
            tokenizer = _load_tokenizer(folder, trust_remote_code)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                f"model {model}: its tokenizer cannot be loaded: {error}{own_code(folder)}"
            ) from error
        tokenizer.name_or_path = model  # not the folder of one machine, in what is said of it
        return cls(tokenizer, config)

    @cached_property
    def eos_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def plain_ids(self, problem: str) -> list[int]:
        """Prompt of the base policy, which does not know chunks yet."""
        return self._ask(self.config.plain.format(problem=self._safe(problem)))

    def policy_ids(self, problem: str) -> list[int]:
        """Prompt of the policy that writes in steps; any policy writes paragraphs."""
        if self.config.steps == "paragraphs":
            return self.plain_ids(problem)
        return self._ask(self.config.policy.format(problem=self._safe(problem)))

    @property
    def stop(self) -> str:
        """What closes a step while it is generated."""
        return CLOSE if self.config.steps == "chunks" else "\n\n"

    @property
    def opening(self) -> str:
        """What the prompt writes of an answer: the marker that opens its thinking, or nothing."""
        return self._template.opening

    @property
    def closing(self) -> str:
        """What an answer begins with that is not to think, where the prompt has it think."""
        return self._template.closing

    def heard(self, samples: Sequence[Sample]) -> list[Sample]:
        """Answers to whole prompts with the opening of their thinking, where the prompt wrote it.

        Their ids stay as they are. A second time changes nothing.
        """
        if not self.opening:
            return list(samples)
        return [replace(sample, text=self._opened(sample.text)) for sample in samples]

    def _opened(self, text: str) -> str:
        return text if opening_marker(text) else self.opening + text

    def answer_of_prefix(self, ids: Sequence[int]) -> str:
        """What leading ids of a response say, its thinking aside."""
        return answer_of(self._opened(self.decode(ids)))

    def response_ids(self, text: str) -> list[int]:
        """Ids of a whole response with its end, as a policy is to learn it.

        Of the text as `heard` gives it, or without thinking.
        """
        opening = self.opening
        if text.startswith(opening):
            text = text[len(opening) :]
        elif answer_start(text) == 0:
            text = self.closing + text
        return [*self.encode(text), self.eos_token_id]

    def split(self, sample: Sample) -> Steps:
        """A response into its steps.

        Raises ValueError with the reason where the response is cut off or not well formed.
        """
        texts, ends = self.split_text(sample)
        return Steps(texts, self.token_ends(sample, ends))

    def split_text(self, sample: Sample) -> tuple[list[str], list[int]]:
        """The texts of a response's steps, and where each ends: characters, of the whole text.

        The text is what `heard` makes of it. Thinking belongs to no step, and to every prefix.

        Raises ValueError as `split` does, and is much quicker.
        """
        (sample,) = self.heard([sample])
        if sample.truncated:
            thinks = is_unfinished(sample.text)
            raise ValueError("cut at the token limit" + (" while thinking" if thinks else ""))
        if self.config.steps == "paragraphs":
            start = answer_start(sample.text)
            if start is None:
                raise ValueError(UNFINISHED)
            texts = split_paragraphs(sample.text[start:])
            ends = list(accumulate((len(text) for text in texts), initial=start))[1:]
        else:
            parsed = parse_chunks(sample.text)
            if parsed is None:
                raise ValueError(explain_malformed(sample.text).partition(":")[0])
            texts, ends = list(parsed.steps), list(parsed.ends)
        return texts, ends

    def token_ends(self, sample: Sample, ends: Sequence[int]) -> list[int]:
        """For each step, how many leading ids of a response contain it and what closes it.

        Args:
            sample: the response; its text as an engine gives it, or decoded without a prompt.
            ends: as `split_text` gives them.

        Raises ValueError where the ids do not give the sample's text back.
        """
        (sample,) = self.heard([sample])
        return list(token_ends(sample.token_ids, self._reading(sample), ends))

    def _reading(self, sample: Sample) -> Callable[[Sequence[int]], str]:
        """The way to decode ids that gives the sample's text."""
        opening = self.opening
        for decode in (self.decode, self._text.decode_alone):
            text = decode(sample.token_ids)
            if text == sample.text:
                return decode
            if opening and opening + text == sample.text:
                return lambda ids, decode=decode: opening + decode(ids)  # type: ignore[misc]
        raise ValueError("the ids do not give the text back")

    def from_steps(self, steps: Sequence[str]) -> tuple[list[int], Steps]:
        """A solution from elsewhere as a response of this policy: its ids, and its steps in them.

        It is tokenized once and whole, so that the ids of every prefix are leading ids of the
        response, as with one that was sampled. A step without a line break at its end gets the
        blank line back that split it off.

        Raises ValueError with the reason where it cannot be written so.
        """
        tagged = self.config.steps == "chunks"
        texts = [self._safe(step) for step in steps]
        for i, text in enumerate(texts[:-1]):
            if not tagged:
                texts[i] = text.rstrip("\n") + "\n\n"
            elif not text.endswith("\n"):
                texts[i] = text + "\n\n"
        if any(strip_tags(text) != text for text in texts):
            raise ValueError("a step has a chunk tag in it")
        pieces = [f"{OPEN}{text}{CLOSE}" for text in texts] if tagged else texts
        # A response to a prompt that has the policy think says first that it does not.
        text = "".join([self.closing, *pieces])
        ids = self.encode(text)
        if self.decode(ids) != text:
            raise ValueError("the tokenizer does not give its text back")
        ends = list(accumulate((len(piece) for piece in pieces), initial=len(self.closing)))[1:]
        return ids, Steps(texts, list(token_ends(ids, self.decode, ends)))

    def segment_message(self, response: str) -> str:
        """What the segmenter is asked."""
        return self.config.segment.format(response=self._safe(response))

    def ask(self, message: str) -> list[int]:
        """Any one user message."""
        return self._ask(message)

    def conversation_ids(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """A conversation of others, each turn a role and a content, the last one the user's.

        Raises UserError where the chat template does not take it.
        """
        safe = [(role, self._safe(content)) for role, content in turns]
        return self._prompt_ids(self._template.conversation(safe))

    def judge_ids(self, problem: str, history: Sequence[str], chunk: str) -> list[int]:
        """Prompt of the generative judge about `chunk`, which follows `history`."""
        return self._ask(self.judge_message(problem, history, chunk))

    def judge_message(self, problem: str, history: Sequence[str], chunk: str) -> str:
        """What the generative judge is asked, before a chat template."""
        separator = self.config.history_separator
        # A separator closes every piece of a non-empty history of the tiny model ("") alike.
        text = separator.join(self._safe(piece) for piece in history)
        return self.config.judge.format(
            problem=self._safe(problem),
            history=text if history else self.config.empty_history,
            chunk=self._safe(chunk),
        )

    def discriminative_ids(self, problem: str, history: Sequence[str], chunk: str) -> list[int]:
        """Prompt of the discriminative judge: every earlier chunk was answered with `+`."""
        ids: list[int] = []
        for piece in self._questions(problem, [*history, chunk]):
            if ids:
                ids.append(self.mark_ids[True])
            ids += piece
        return ids

    def discriminative_example(
        self, problem: str, chunks: Sequence[str], labels: Sequence[bool]
    ) -> tuple[list[int], list[bool]]:
        """Multi-turn training example: ids, and a mask that is true on the verdict tokens only.

        Up to each verdict it is what `discriminative_ids` gives, but for the verdicts before.
        """
        ids: list[int] = []
        mask: list[bool] = []
        questions = self._questions(problem, chunks[: len(labels)])
        for piece, label in zip(questions, labels, strict=True):
            ids += [*piece, self.mark_ids[label]]
            mask += [False] * len(piece) + [True]
        return ids, mask

    def _questions(self, problem: str, chunks: Sequence[str]) -> Iterator[list[int]]:
        """What stands before each verdict: the first prompt, then what follows a verdict."""
        contents: list[str] = []
        for i, chunk in enumerate(chunks):
            text = self._safe(chunk)
            if i == 0:
                first = self.config.discriminative_first
                contents.append(first.format(problem=self._safe(problem), chunk=text))
                rendered = self._template.prompt(contents[0])
            else:
                contents.append(self.config.discriminative_next.format(chunk=text))
                rendered = self._template.follow_up(contents)
            # The verdict is an answer, not a thought.
            rendered += closing_of(open_at_end(rendered))
            if i == 0:
                yield self._prompt_ids(rendered)
            else:
                yield self._text.encode_after(POSITIVE_MARK, rendered)

    @cached_property
    def mark_ids(self) -> dict[bool, int]:
        """Token ids of the discriminative verdicts.

        Raises UserError where the tokenizer has no token of its own for one.
        """
        ids = {}
        for label, mark in ((True, POSITIVE_MARK), (False, NEGATIVE_MARK)):
            tokens = self.tokenizer.encode(mark, add_special_tokens=False)
            if len(tokens) != 1:  # it may be one where no word begins
                tokens = self.encode(mark)
            if len(tokens) != 1:
                raise UserError(
                    f"the tokenizer of {self.tokenizer.name_or_path} writes {mark!r} as "
                    f"{len(tokens)} tokens; the discriminative judge needs one"
                )
            ids[label] = int(tokens[0])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a response or of its leading ids, as an engine gives it."""
        return self._text.decode(ids)

    def decode_token(self, token_id: int) -> str:
        """Text of one token within a response, special tokens included."""
        return self._text.decode_token(token_id)

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of a response, with nothing added."""
        return self._text.encode(text)

    def _safe(self, text: str) -> str:
        return neutralize(text, self._special)

    def _ask(self, content: str) -> list[int]:
        return self._prompt_ids(self._template.prompt(content))

    def _prompt_ids(self, text: str) -> list[int]:
        """A rendered prompt has its special tokens in it: none is added, and one BOS is enough."""
        ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        doubled = ids[:2] == [self.tokenizer.bos_token_id] * 2
        return ids[1:] if doubled else ids
