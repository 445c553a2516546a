"""How large a model is, from its config.json and the headers of its safetensors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stepwiser.annotation.cost import parameters_of

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number, by torch's names of types."""

LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""What such changes are called in the config.json of Gemma, Cohere, Granite and Falcon."""


@dataclass(frozen=True)
class ModelSize:
    """What memory depends on. Lengths are numbers of elements."""

    parameters: float
    """Exact, from the headers; a tied output layer counts once."""
    width: int
    """Bytes of a parameter as the checkpoint has it (`engine.dtype=auto`)."""
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    whole_logits: bool = False
    """The model's code changes logits behind its output layer: training needs all at once."""

    @property
    def attention(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    def kv_token(self, width: int) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * width


def _qwen(
    parameters: float, hidden: int, inner: int, layers: int, heads: int, kv: int
) -> ModelSize:
    words = 151_936 if parameters < 4e9 else 152_064
    return ModelSize(parameters, 2, hidden, inner, layers, heads, kv, 128, words)


QWEN = {
    "1.5B": _qwen(1.5437e9, 1536, 8960, 28, 12, 2),
    "7B": _qwen(7.6156e9, 3584, 18944, 28, 28, 4),
    "14B": _qwen(14.770e9, 5120, 13824, 48, 40, 8),
    "32B": _qwen(32.764e9, 5120, 27648, 64, 40, 8),
}
"""Qwen2.5 by its usual sizes, as their config.json files have it: to plan with models that are not
on this machine."""


def known_size(name: str) -> ModelSize | None:
    """The size that a model's name tells (`Qwen/Qwen2.5-7B-Instruct`); None where it tells none."""
    match = re.fullmatch(r"(?:.*[/-])?(\d+(?:\.\d+)?B)(?:-.*|@.*)?", name)
    return QWEN.get(match[1]) if match else None


@cache
def read_model_size(folder: str | Path) -> ModelSize | None:
    """The size of the model in a folder; None where that cannot be told from its files.

    Read once: a plan is made for many settings.
    """
    path = Path(folder)
    try:
        raw = json.loads((path / "config.json").read_text())
        parameters = parameters_of(path)
        # Models that see images keep the part that writes in a section of its own.
        text = raw.get("text_config") or raw
        hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
        if parameters is None:
            return None
        return ModelSize(
            parameters=parameters,
            width=WIDTHS.get(_type_of(raw, text), 2),
            hidden=hidden,
            intermediate=int(text["intermediate_size"]),
            layers=int(text["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_dim=int(text.get("head_dim") or hidden // heads),
            vocabulary=int(text["vocab_size"]),
            whole_logits=any(text.get(name) for name in LOGIT_CHANGES),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _type_of(raw: dict[str, Any], text: dict[str, Any]) -> str:
    for section in (raw, text):
        for key in ("dtype", "torch_dtype"):
            if isinstance(section.get(key), str):
                return str(section[key])
    return "float32"
