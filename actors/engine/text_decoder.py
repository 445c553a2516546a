"""Text of sampled ids, and stop strings that a single token decides.

vLLM can decode every token as it comes, and must when it watches for stop strings; for small models
that costs a fifth of the speed. So samples are decoded here, once, when they are done, and a stop
string becomes a set of stop tokens wherever the vocabulary allows no other way to write it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from stepwiser.prompting.token_text import TokenText


class TextDecoder:
    """Decodes continuations of a prompt with a Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any, model_vocab_size: int) -> None:
        self._size = min(len(tokenizer), model_vocab_size)
        self._stop_tokens: dict[str, tuple[int, ...] | None] = {}
        self._text = TokenText(tokenizer)  # as whoever reads the samples decodes their prefixes

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each continuation, without special tokens."""
        return self._text.decode_all(ids)

    @cached_property
    def _pieces(self) -> list[str]:
        """Text of every token, inside a sentence."""
        return self.decode([[token] for token in range(self._size)])

    def stop_tokens(self, stop: str) -> tuple[int, ...] | None:
        """The tokens after which, and only after which, a text contains ``stop``.

        None when the string can also be spelled by several tokens: the text has to be watched then.
        It cannot be when no token ends with a proper beginning of it.
        """
        if stop not in self._stop_tokens:
            if len(self._stop_tokens) > 1000:  # clients of a service choose them
                self._stop_tokens.clear()
            beginnings = tuple(stop[:length] for length in range(1, len(stop)))
            # An unfinished character (a byte of a byte-level vocabulary) may grow into anything.
            composable = any(
                piece.endswith(beginnings) or "\ufffd" in piece for piece in self._pieces
            )
            holders = tuple(i for i, piece in enumerate(self._pieces) if stop in piece)
            self._stop_tokens[stop] = None if composable or not holders else holders
        return self._stop_tokens[stop]
