"""Log-probs of given tokens straight from hidden states, a block of the vocabulary at a time.

Logits of a whole vocabulary are the largest thing that a training step makes: 150,000 words cost
600 kB a token in float32, several times over. Here they live for a block of words only, are summed
up at once, and are computed again for the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits that exist at once. On a CPU they stay in its cache; a GPU has to be kept busy."""
LEAST_WORDS = 256
"""Of a block, however many tokens there are: narrower matrix products are slow."""


def vocabulary_logprobs(
    hidden: Float[Tensor, "M H"],
    weight: Float[Tensor, "V H"],
    ids: Int[Tensor, " M"],
    temperature: float = 1.0,
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Log-probs of ``ids`` (with gradient) and entropies in nats (without).

    What `stepwiser.training.grpo` computes as ``token_logprobs`` and ``entropy`` of the logits
    ``hidden @ weight.T``, which have the type of ``hidden`` here too; all else is float32 or wider.

    Raises ValueError for a temperature not above 0.
    """
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(f"temperature must be above 0, got {temperature}")
    logprobs, entropies = _VocabularyLogprobs.apply(hidden, weight, ids, temperature)
    return logprobs, entropies


class _VocabularyLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        # Running maximum of the logits, and sums of exp(logit - maximum), alone and times logit.
        top = hidden.new_full((len(hidden),), -math.inf, dtype=wide)
        mass, weighted, chosen = (torch.zeros_like(top) for _ in range(3))
        for first, words in _blocks(weight, len(hidden)):
            logits = _logits(hidden, words, temperature, wide)
            place, here = _places(ids, first, len(words))
            chosen += logits.gather(1, place).squeeze(1) * here
            higher = torch.maximum(top, logits.amax(dim=1))
            share = (logits - higher[:, None]).exp_()
            shrunk = (top - higher).exp_()
            mass = mass * shrunk + share.sum(dim=1)
            weighted = weighted * shrunk + share.mul_(logits).sum(dim=1)
            top = higher
        total = top + mass.log()
        ctx.save_for_backward(hidden, weight, ids, total)
        ctx.temperature = temperature
        entropies = total - weighted / mass
        ctx.mark_non_differentiable(entropies)
        return chosen - total, entropies

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, ids, total = ctx.saved_tensors
        for_hidden = torch.zeros_like(hidden, dtype=total.dtype)
        for_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        # d log p / d logit is 1 for the chosen word less every word's probability.
        scale = (gradient / ctx.temperature)[:, None]
        for first, words in _blocks(weight, len(hidden)):
            logits = _logits(hidden, words, ctx.temperature, total.dtype)
            slopes = logits.sub_(total[:, None]).exp_().mul_(-scale)
            place, here = _places(ids, first, len(words))
            slopes.scatter_add_(1, place, scale * here[:, None])
            narrow = slopes.to(hidden.dtype)
            for_hidden += narrow @ words
            if for_weight is not None:
                torch.mm(narrow.T, hidden, out=for_weight[first : first + len(words)])
        return for_hidden.to(hidden.dtype), for_weight, None, None


def _blocks(weight: Tensor, tokens: int) -> Iterator[tuple[int, Tensor]]:
    """First word and rows of each block."""
    numbers = BLOCK_NUMBERS.get(weight.device.type, BLOCK_NUMBERS["cuda"])
    words = max(LEAST_WORDS, numbers // max(1, tokens))
    for first in range(0, len(weight), words):
        yield first, weight[first : first + words]


def _logits(hidden: Tensor, words: Tensor, temperature: float, wide: torch.dtype) -> Tensor:
    logits = (hidden @ words.T).to(wide)
    return logits if temperature == 1.0 else logits.div_(temperature)


def _places(ids: Tensor, first: int, words: int) -> tuple[Tensor, Tensor]:
    """Column [M, 1] of each token in a block, and whether it is there at all."""
    place = ids - first
    here = (place >= 0) & (place < words)
    return place.clamp(0, words - 1)[:, None], here
