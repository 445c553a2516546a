"""Small tokenizers laid out as those of public model families, trained here on a few lines.

What differs between families is how a text becomes pieces and pieces a text: normalizer,
pre-tokenizer, decoder and post-processor. Vocabularies are of some hundred pieces.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPACE = "\u2581"
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + ' [end]' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[answer]' }}{% endif %}"
)
_WORDS = r"'s|'t| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def corpus() -> list[str]:
    lines = [
        f"Ann has {a} coins, she buys {b}. So {a}+{b}={a + b}\n<chunk>Then x = {a}</chunk>\n\n"
        f"the answer is \\boxed{{{a + b}}} </chunk><chunk> Hello world. It's π≈3, ½·é 😀 - + ?"
        for a in range(3, 30)
        for b in range(2, 9)
    ]
    return [
        *lines,
        "[user] question [end][answer] + - <chunk>\n",
        "Größe, naïve → 中文 字 \t tab  two",
    ]


def _bpe(
    normalizer: Any = None, pre: Any = None, *, byte_level: bool = False, fallback: bool = False
) -> Tokenizer:
    """Trained merges in a model that falls back to bytes where it is asked to."""
    raw = Tokenizer(models.BPE())
    if normalizer is not None:
        raw.normalizer = normalizer
    # Without words merges would run over whole lines.
    raw.pre_tokenizer = pre or pre_tokenizers.Split(SPACE, "merged_with_next")
    raw.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=420,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else [],
            show_progress=False,
        ),
    )
    model = json.loads(raw.to_str())["model"]
    first = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] * fallback
    pieces = [p for p in sorted(model["vocab"], key=model["vocab"].get) if p not in first]
    vocabulary = {piece: i for i, piece in enumerate([*first, *pieces])}
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    made = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=fallback, fuse_unk=True)
    )
    if normalizer is not None:
        made.normalizer = normalizer
    if pre is not None:
        made.pre_tokenizer = pre
    return made


def _begins_with_bos(tokenizer: Tokenizer, after: str = "") -> Tokenizer:
    tokens = [("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{after}", special_tokens=tokens
    )
    return tokenizer


def _sentencepiece(strip: bool) -> Any:
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])


def llama2() -> Tokenizer:
    steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    made = _bpe(normalizers.Sequence(steps), fallback=True)
    made.decoder = _sentencepiece(strip=True)
    return _begins_with_bos(made)


def mistral() -> Tokenizer:
    made = _bpe(pre=pre_tokenizers.Metaspace(prepend_scheme="first", split=True), fallback=True)
    made.decoder = _sentencepiece(strip=True)
    return _begins_with_bos(made)


def gemma() -> Tokenizer:
    made = _bpe(normalizers.Replace(" ", SPACE), fallback=True)
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = _sentencepiece(strip=False)
    return _begins_with_bos(made)


def _byte_level(*splits: Any, normalizer: Any = None, prefix: bool = False, regex: bool = False):
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
    pre = pre_tokenizers.Sequence([*splits, level]) if splits else level
    made = _bpe(normalizer, pre, byte_level=True)
    made.decoder = decoders.ByteLevel()
    return made


def _isolated(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def llama3() -> Tokenizer:
    return _begins_with_bos(_byte_level(_isolated(_WORDS)))


def qwen() -> Tokenizer:
    return _byte_level(_isolated(_WORDS.replace("{1,3}", "")), normalizer=normalizers.NFC())


def deepseek() -> Tokenizer:
    return _begins_with_bos(
        _byte_level(
            _isolated("[\r\n]"),
            _isolated(r"\s?\p{L}+"),
            pre_tokenizers.Digits(individual_digits=True),
        )
    )


def gpt2() -> Tokenizer:
    return _byte_level(regex=True)


def phi() -> Tokenizer:
    """A space is put before every text, as in RoBERTa and older checkpoints."""
    return _byte_level(regex=True, prefix=True)


def smollm2() -> Tokenizer:
    return _byte_level(pre_tokenizers.Digits(individual_digits=True), regex=True)


def falcon() -> Tokenizer:
    return _byte_level(pre_tokenizers.Punctuation("contiguous"), _isolated(r"\d{3}"), regex=True)


def bos_twice() -> Tokenizer:
    """Llama-3-like, with the chat template and the post-processor both writing BOS, and an EOS."""
    return _begins_with_bos(_byte_level(_isolated(_WORDS)), after=" </s>")


def t5() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    made.train_from_iterator(
        corpus(),
        trainers.UnigramTrainer(
            vocab_size=400,
            special_tokens=["<unk>", "<s>", "</s>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", made.token_to_id("</s>"))]
    )
    return made


def bert() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        corpus(),
        trainers.WordPieceTrainer(
            vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
        ),
    )
    made.decoder = decoders.WordPiece()
    made.add_tokens([AddedToken(tag, normalized=False) for tag in ("<chunk>", "</chunk>")])
    return _begins_with_bos(made, after=" </s>")


def clip() -> Tokenizer:
    """Pieces say where a word ends, as in the first GPT."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=["<unk>", "<s>", "</s>"],
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    return made


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "Llama-2": llama2,
    "Mistral": mistral,
    "Gemma": gemma,
    "Llama-3": llama3,
    "Qwen": qwen,
    "DeepSeek": deepseek,
    "GPT-2": gpt2,
    "Phi": phi,
    "SmolLM2": smollm2,
    "Falcon": falcon,
    "BOS twice": bos_twice,
    "T5": t5,
    "BERT": bert,
    "CLIP": clip,
}
EXACT = sorted(FAMILIES.keys() - {"T5", "BERT", "CLIP"})
"""Families that write every text (in NFC) so that it comes back to the character."""


@cache
def family(name: str) -> Any:
    """As transformers wraps it, with a chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=FAMILIES[name](),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT,
    )
