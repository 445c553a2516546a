"""What vLLM answers of log-probs in its flat form, as tuples and tables of tokens."""

from __future__ import annotations

from typing import Any


def read_logprobs(
    flat: Any, top: int
) -> tuple[tuple[float, ...], tuple[dict[int, float], ...] | None]:
    """The sampled token's log-prob at each position, and the ``top`` most likely tokens."""
    if top == 0:
        return tuple(flat.logprobs), None
    # At each position vLLM writes the sampled token first, then the most likely ones.
    sampled = tuple(flat.logprobs[start] for start in flat.start_indices)
    ranked = tuple(
        dict(zip(flat.token_ids[start + 1 : end], flat.logprobs[start + 1 : end], strict=True))
        for start, end in zip(flat.start_indices, flat.end_indices, strict=True)
    )
    return sampled, ranked
