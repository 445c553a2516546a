"""Ids and text of a piece of a response, as it stands after a prompt.

A tokenizer treats a text of its own otherwise than a continuation: SentencePiece decoders drop the
space before the first word and its encoders put one there, byte-level ones with a prefix space do
the latter, WordPiece puts a space between words. So ids are decoded after a word that is cut off
again, and a text is encoded such that this decoding gives it back. Engines and readers share this:
offsets in a sample's text are offsets in what its ids decode to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from stepwiser.prompting.thinking import MARKERS

_ANCHORS = ("\n", ".", "a", "0", ")", "|", " a")
"""Texts before a text that is to be encoded as a continuation; one must not merge with it."""


class TokenText:
    """Both directions for one Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Markers of thinking are kept even where a tokenizer takes them for special tokens.
        names = {*MARKERS, *MARKERS.values()}
        self._markers = {
            int(i): token.content
            for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
            if token.special and token.content in names
        }
        self.context: list[int] = []
        """Ids of the word that is put in front where the decoder needs one."""
        self._skip = 0
        words = list(tokenizer.encode(" a a", add_special_tokens=False))
        for word in (words[-1:], words):  # one token where a vocabulary has the word as one
            once, twice = self._plain([word, word * 2])
            if twice != once + once:
                self.context, self._skip = word, len(once)
                break

    def _plain(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return list(
            self._tokenizer.batch_decode(
                [list(row) for row in ids],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
        )

    def decode_all(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each continuation, without special tokens."""
        texts = self._plain([[*self.context, *row] for row in ids] if self.context else ids)
        if self._skip:
            texts = [text[self._skip :] for text in texts]
        if self._markers:
            for i, row in enumerate(ids):
                if any(token in self._markers for token in row):
                    texts[i] = "".join(self._pieces(row))
        return texts

    def decode(self, ids: Sequence[int]) -> str:
        """Text of one continuation, without special tokens."""
        return self.decode_all([ids])[0]

    def decode_alone(self, ids: Sequence[int]) -> str:
        """Text of ids that nothing precedes, as other programs decode a response."""
        return self._plain([ids])[0]

    def decode_token(self, token_id: int) -> str:
        """Text of one token within an answer, special tokens included."""
        text = str(
            self._tokenizer.decode([*self.context, token_id], clean_up_tokenization_spaces=False)
        )
        return text[self._skip :]

    def encode(self, text: str) -> list[int]:
        """Ids whose `decode` is the text, nothing added; the tokenizer's own where none is found.

        The tokenizer's own come first: they are what models were trained on.
        """
        own = self._encode(text)
        if self.decode(own) == text:
            return own
        return next((ids for ids in self._after(_ANCHORS, text) if self.decode(ids) == text), own)

    def encode_after(self, before: str, text: str) -> list[int]:
        """Ids of what goes on after a text, special tokens in it included.

        Where the two would share a token it goes on as after another text.
        """
        return next(self._after((before, *_ANCHORS), text), self._encode(text))

    def _after(self, anchors: Sequence[str], text: str) -> Iterator[list[int]]:
        for anchor in anchors:
            before = self._encode(anchor)
            whole = self._encode(anchor + text)
            if whole[: len(before)] == before:
                yield whole[len(before) :]

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        """Texts between the markers, and the markers."""
        pieces: list[str] = []
        piece: list[int] = []
        for token in ids:
            if token in self._markers:
                pieces += [self._continued(piece), self._markers[token]]
                piece = []
            else:
                piece.append(token)
        return [*pieces, self._continued(piece)]

    def _continued(self, ids: Sequence[int]) -> str:
        return self._plain([[*self.context, *ids]])[0][self._skip :]
