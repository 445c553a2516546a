"""What a generator is asked for and what it gives back.

The method only ever sees these types; which engine stands behind them (a Ray actor with vLLM, or a
plain function in a test) is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sampling:
    """How to continue one prompt.

    The judge and the policy are always sampled with top-p 1 and no top-k: truncated sampling would
    bias both the Monte-Carlo values and the importance ratios of the RL loss.
    """

    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    """Strings that end a sample; the string itself stays at the end of its text and ids."""
    logprobs: bool = False
    """Ask for the log-prob of every sampled token, at the sampling temperature."""
    top_logprobs: int = 0
    """Also ask for this many of the most likely tokens at each position."""
    seed: int | None = None


@dataclass(frozen=True)
class Sample:
    """One continuation of a prompt."""

    token_ids: tuple[int, ...]
    """Sampled ids; the end-of-sequence id is included when it was sampled."""
    text: str
    """Decoded without special tokens; a stop string is kept."""
    finish_reason: str
    """``stop`` (end of sequence or stop string) or ``length`` (ran into ``max_tokens``)."""
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[dict[int, float], ...] | None = None
    weight_version: int = 0
    """Version of the weights that were loaded when the sample was asked for."""

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"


class Generator(Protocol):
    """Anything that continues token ids: an engine pool in production."""

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        """Return ``sampling.n`` samples.

        ``affinity`` names a group of prompts that share a prefix (the chunks of one trajectory);
        a pool sends the same name to the same engine so that its prefix cache serves them.
        """
        ...
