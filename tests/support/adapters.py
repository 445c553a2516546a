"""What transformers says of a model with an adapter, by another way than ours: added up here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch


def merged_logprobs(
    model: Path | str, adapter: Mapping[str, torch.Tensor], scale: float, ids: Sequence[int]
) -> torch.Tensor:
    """Log-probs of every token but the first: [``len(ids) - 1``].

    ``adapter`` by peft's names; ``scale`` is alpha / rank.
    """
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    weights = merged.state_dict()
    for name, a in adapter.items():
        if "lora_A" in name:
            b = adapter[name.replace("lora_A", "lora_B")]
            plain = name.removeprefix("base_model.model.").replace(".lora_A", "")
            weights[plain] += scale * (b.float() @ a.float())
    with torch.no_grad():
        scores = merged(torch.tensor([list(ids)])).logits[0].log_softmax(-1)
    return scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
