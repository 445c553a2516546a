"""Text of continuations, and which stop strings single tokens decide."""

from __future__ import annotations

import pytest

from actors.engine.text_decoder import TextDecoder
from stepwiser.tasks.tokenizer import build_tokenizer
from tests.support.tiny import make_tiny_model


def _wrap(inner):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=inner)


def _sentencepiece_like():
    """Words begin with a marked space, and decoding drops the first one, as in Llama 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<unk>", "\u2581", "\u2581a", "\u2581buys", "\u2581stop", "s", "top", "."]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _wrap(tokenizer)


def test_a_continuation_keeps_the_space_it_begins_with():
    tokenizer = _sentencepiece_like()
    decoder = TextDecoder(tokenizer, len(tokenizer))
    ids = tokenizer.encode("buys stop", add_special_tokens=False)
    assert tokenizer.decode(ids) == "buys stop"
    assert decoder.decode([ids, ids[1:]]) == [" buys stop", " stop"]


def test_the_pieces_of_the_arithmetic_task_decide_their_stop_strings():
    tokenizer = build_tokenizer()
    decoder = TextDecoder(tokenizer, len(tokenizer))
    assert decoder.stop_tokens("</chunk>") == (tokenizer.convert_tokens_to_ids("</chunk>"),)
    assert decoder.stop_tokens("\n") == (tokenizer.convert_tokens_to_ids("\n"),)
    # Two line ends are two tokens, and a digit may be spelled within a longer number only alone.
    assert decoder.stop_tokens("\n\n") is None
    assert decoder.stop_tokens("12") is None
    assert decoder.stop_tokens("not in the vocabulary") is None


def test_bytes_can_spell_anything(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path))
    decoder = TextDecoder(tokenizer, len(tokenizer))
    assert decoder.stop_tokens("</chunk>") is None
    text = "<chunk> buys 64+21=85\n</chunk>\\boxed{3} \u00e4"
    assert decoder.decode([tokenizer.encode(text)]) == [text]


@pytest.mark.parametrize(
    ("stop", "tokens"), [("s", (3, 4, 5)), ("top", (4, 6)), ("stop", None), ("buys stop", None)]
)
def test_every_token_that_holds_a_stop_string_stops(stop, tokens):
    tokenizer = _sentencepiece_like()
    assert TextDecoder(tokenizer, len(tokenizer)).stop_tokens(stop) == tokens
