"""Small random step scorers of every public form, in the layouts that they are published in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
    Qwen2Model,
)

CORPUS = [
    f"Step {a}: Ana has {a} coins and gets {b} + {a} - 1, so {a} + {b} = {a + b}. ки\n\n"
    for a in range(2, 40)
    for b in range(3, 12)
]
WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
"""Line breaks are words of their own, as in these families."""
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADED = (
    "{{ '<|begin|>' }}{% for m in messages %}{{ '<|head|>' + m['role'] + '<|end_head|>\n\n' + "
    "m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|end_head|>\n\n' }}{% endif %}"
)


def byte_tokenizer(special: list[str], template: str, **named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Qwen and Llama 3 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    wrapped.chat_template = template
    return wrapped


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
    return byte_tokenizer(special, CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|begin|>", "<|head|>", "<|end_head|>", "<|eot|>"]
    return byte_tokenizer(special, HEADED, bos_token="<|begin|>", eos_token="<|eot|>")


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Words with the space before them, as SentencePiece writes them, and a BOS in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def make_scorer(form: str, folder: Path, **changes: Any) -> Path:
    """Write a random scorer of the form into a folder; return it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        {
            "token_classification": _token_classification,
            "qwen_prm": _qwen,
            "math_shepherd": _shepherd,
            "rlhflow": _rlhflow,
            "skywork": _skywork,
        }[form](folder, changes)
    return folder


def _shape(tokenizer: Any, changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    } | changes


def _token_classification(folder: Path, changes: dict[str, Any]) -> None:
    tokenizer = qwen_tokenizer()
    config = Qwen2Config(**_shape(tokenizer, {"num_labels": 2} | changes))
    model = Qwen2ForTokenClassification(config)
    torch.nn.init.normal_(model.score.bias)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _rlhflow(folder: Path, changes: dict[str, Any]) -> None:
    tokenizer = llama_tokenizer()
    LlamaForCausalLM(LlamaConfig(**_shape(tokenizer, changes))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _shepherd(folder: Path, changes: dict[str, Any]) -> None:
    tokenizer = mistral_tokenizer()
    MistralForCausalLM(MistralConfig(**_shape(tokenizer, changes))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _qwen(folder: Path, changes: dict[str, Any]) -> None:
    """With the code of its own that the published config names, and no model class of it here."""
    tokenizer = qwen_tokenizer()
    config = Qwen2Config(**_shape(tokenizer, changes))
    hidden = config.hidden_size
    weights = {f"model.{name}": t for name, t in Qwen2Model(config).state_dict().items()}
    for layer, size in (("0", hidden), ("2", 2)):
        weights[f"score.{layer}.weight"] = torch.randn(size, hidden) * 0.2
        weights[f"score.{layer}.bias"] = torch.randn(size)
    code = {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"}
    _write(folder, config, weights, "Qwen2ForProcessRewardModel", auto_map=code)
    tokenizer.save_pretrained(folder)


def _skywork(folder: Path, changes: dict[str, Any]) -> None:
    """As TRL's models with a value head are saved."""
    tokenizer = qwen_tokenizer()
    config = Qwen2Config(**_shape(tokenizer, changes))
    weights = dict(Qwen2ForCausalLM(config).state_dict())
    weights["v_head.summary.weight"] = torch.randn(1, config.hidden_size)
    weights["v_head.summary.bias"] = torch.randn(1)
    _write(folder, config, weights, "Qwen2ForPrmModel")
    tokenizer.save_pretrained(folder)


def _write(folder: Path, config: Any, weights: dict[str, Any], name: str, **more: Any) -> None:
    """Config and weights, these in two files."""
    folder.mkdir(parents=True, exist_ok=True)
    said = config.to_dict() | {"architectures": [name], **more}
    (folder / "config.json").write_text(json.dumps(said))
    names = sorted(weights)
    parts = (names[::2], names[1::2])
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, part in zip(files, parts, strict=True):
        tensors = {n: weights[n].contiguous().clone() for n in part}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    where = {n: file for file, part in zip(files, parts, strict=True) for n in part}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
