"""From problems and chunks to the token ids a model reads.

Everything a user supplies is neutralized first: special tokens inside a problem or a judged chunk
never reach the model as special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwiser.config.prompts import PromptConfig
from stepwiser.errors import UserError
from stepwiser.generation import Sample
from stepwiser.prompting.chunks import (
    CLOSE,
    OPEN,
    explain_malformed,
    parse_chunks,
    split_paragraphs,
    strip_tags,
    token_ends,
)
from stepwiser.prompting.verdicts import neutralize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

POSITIVE_MARK = "+"
NEGATIVE_MARK = "-"


def resolve_model(name: str) -> str:
    """An absolute model directory (`embedded` is the packaged base model) or a Hub name.

    Raises UserError for a path that does not exist or has no config or no tokenizer.
    """
    if name == "embedded":
        from stepwiser.tasks import load_base_model_dir

        return str(load_base_model_dir())
    path = Path(name).expanduser()
    if not path.exists():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise UserError(f"model {name} does not exist: give a Hugging Face directory or name")
        return name
    if not (path / "config.json").is_file():
        raise UserError(f"model {path} has no config.json: it is not a Hugging Face directory")
    if not any((path / f).is_file() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(
            f"model {path} has no tokenizer: copy tokenizer.json and tokenizer_config.json there"
        )
    return str(path.absolute())  # workers have working directories of their own


def _load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The one that AutoTokenizer gives.

    AutoTokenizer imports torch first: four seconds and 280 MB of every labeler and server. A
    directory that names the generic class needs nobody to choose one.
    """
    settings, vocabulary = (Path(model) / f for f in ("tokenizer_config.json", "tokenizer.json"))
    named = json.loads(settings.read_text()) if settings.is_file() else {}
    if named.get("tokenizer_class") == "TokenizersBackend" and vocabulary.is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(model)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


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
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"tokenizer of {tokenizer.name_or_path} has no chat template: use an "
                "instruction-tuned model or set chat_template in its tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.config = config
        added = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        self._special = tuple(sorted({*tokenizer.all_special_tokens, *added}))

    @classmethod
    def from_model_dir(cls, model: str, config: PromptConfig) -> PromptFormat:
        """Load the tokenizer of a model directory or Hub name."""
        try:
            tokenizer = _load_tokenizer(model)
        except (OSError, ValueError) as error:
            raise UserError(f"model {model}: its tokenizer cannot be loaded: {error}") from error
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

    def split(self, sample: Sample) -> Steps:
        """A response into its steps.

        Raises ValueError with the reason where the response is cut off or not well formed.
        """
        texts, ends = self.split_text(sample)
        return Steps(texts, self.token_ends(sample, ends))

    def split_text(self, sample: Sample) -> tuple[list[str], list[int]]:
        """The texts of a response's steps, and where each ends: characters, of the whole text.

        Raises ValueError as `split` does, and is much quicker.
        """
        if sample.truncated:
            raise ValueError("cut at the token limit")
        if self.config.steps == "paragraphs":
            texts = split_paragraphs(sample.text)
            ends = list(accumulate(len(text) for text in texts))
        else:
            parsed = parse_chunks(sample.text)
            if parsed is None:
                raise ValueError(explain_malformed(sample.text).partition(":")[0])
            texts, ends = list(parsed.steps), list(parsed.ends)
        return texts, ends

    def token_ends(self, sample: Sample, ends: Sequence[int]) -> list[int]:
        """For each step, how many leading ids of a response contain it and what closes it.

        Raises ValueError where the ids do not give the sample's text back.
        """
        return list(token_ends(sample.token_ids, self.decode, ends))

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
        ids = self.encode("".join(pieces))
        if self.decode(ids) != "".join(pieces):
            raise ValueError("the tokenizer does not give its text back")
        ends = list(accumulate(len(piece) for piece in pieces))
        return ids, Steps(texts, list(token_ends(ids, self.decode, ends)))

    def segment_message(self, response: str) -> str:
        """What the segmenter is asked."""
        return self.config.segment.format(response=self._safe(response))

    def ask(self, message: str) -> list[int]:
        """Any one user message."""
        return self._ask(message)

    def judge_ids(self, problem: str, history: Sequence[str], chunk: str) -> list[int]:
        """Prompt of the generative judge about `chunk`, which follows `history`."""
        separator = self.config.history_separator
        # A separator closes every piece of a non-empty history of the tiny model ("") alike.
        text = separator.join(self._safe(piece) for piece in history)
        return self._ask(
            self.config.judge.format(
                problem=self._safe(problem),
                history=text if history else self.config.empty_history,
                chunk=self._safe(chunk),
            )
        )

    def discriminative_ids(self, problem: str, history: Sequence[str], chunk: str) -> list[int]:
        """Prompt of the discriminative judge: every earlier chunk was answered with `+`."""
        return self._conversation(self._turns(problem, [*history, chunk], None))

    def discriminative_example(
        self, problem: str, chunks: Sequence[str], labels: Sequence[bool]
    ) -> tuple[list[int], list[bool]]:
        """Multi-turn training example: ids, and a mask that is true on the verdict tokens only."""
        ids: list[int] = []
        mask: list[bool] = []
        for i, label in enumerate(labels):
            turns = self._turns(problem, chunks[: i + 1], labels[:i])
            prompt = self._conversation(turns)
            ids += prompt[len(ids) :]
            mask += [False] * (len(prompt) - len(mask))
            verdict = self.mark_ids[label]
            ids.append(verdict)
            mask.append(True)
        return ids, mask

    @cached_property
    def mark_ids(self) -> dict[bool, int]:
        """Token ids of the discriminative verdicts."""
        ids = {}
        for label, mark in ((True, POSITIVE_MARK), (False, NEGATIVE_MARK)):
            tokens = self.tokenizer.encode(mark, add_special_tokens=False)
            if len(tokens) != 1:
                raise UserError(
                    f"the tokenizer of {self.tokenizer.name_or_path} writes {mark!r} as "
                    f"{len(tokens)} tokens; the discriminative judge needs one"
                )
            ids[label] = int(tokens[0])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def decode_token(self, token_id: int) -> str:
        return str(self.tokenizer.decode([token_id]))

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of a response, with nothing added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _turns(
        self, problem: str, chunks: Sequence[str], labels: Sequence[bool] | None
    ) -> list[Message]:
        turns: list[Message] = []
        for i, chunk in enumerate(chunks):
            text = self._safe(chunk)
            if i == 0:
                first = self.config.discriminative_first
                content = first.format(problem=self._safe(problem), chunk=text)
            else:
                positive = labels is None or labels[i - 1]
                mark = POSITIVE_MARK if positive else NEGATIVE_MARK
                turns.append({"role": "assistant", "content": mark})
                content = self.config.discriminative_next.format(chunk=text)
            turns.append({"role": "user", "content": content})
        return turns

    def _safe(self, text: str) -> str:
        return neutralize(text, self._special)

    def _ask(self, content: str) -> list[int]:
        return self._conversation([{"role": "user", "content": content}])

    def _conversation(self, messages: list[Message]) -> list[int]:
        encoded: Any = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(encoded["input_ids"])
