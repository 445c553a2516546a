"""The word-level tokenizer of the arithmetic task: 70 pieces, and text and ids map one to one.

Pieces carry their own spaces, so that a solution costs few tokens, and no piece begins with
another one: cutting a text greedily can therefore never find other pieces than those it was made
of.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stepwiser.tasks.arithmetic import ADD_VERBS, FACTOR_OF, ITEMS, NAMES, SUBTRACT_VERBS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK)

PIECES: tuple[str, ...] = (
    *"0123456789+-*=\n",
    *(". ", ": ", "; ", "them. ", "how many?"),
    *(f"{name} has " for name in NAMES),
    *(f" {item}. " for item in ITEMS),
    *(f"{verb} " for verb in (*ADD_VERBS, *SUBTRACT_VERBS, *FACTOR_OF)),
    *("\\boxed{", "}", "Positive", "Negative", "<chunk>", "</chunk>"),
    *("judge ", "glance ", "recompute ", "check ", " same, ", " differ, ", "box ", "so "),
)

CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def vocabulary() -> dict[str, int]:
    """Token to id: the four specials first, then the pieces."""
    return {token: i for i, token in enumerate((*SPECIAL_TOKENS, *PIECES))}


def build_tokenizer(max_length: int = 256) -> PreTrainedTokenizerFast:
    """Make the tokenizer; ``max_length`` (tokens) is only recorded in its config.

    A character outside the vocabulary becomes part of an ``<unk>``; the chunk tags are ordinary
    pieces, so decoding with ``skip_special_tokens`` keeps them.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNK))
    longest_first = sorted(PIECES, key=len, reverse=True)
    pattern = Regex("|".join(re.escape(piece) for piece in longest_first))
    inner.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
