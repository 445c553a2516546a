"""What there is to annotate: how many requests each problem asks for, and how long each sample is.

Lengths come from two places. `drawn` makes as many problems as one likes, with the paper's means
and the spread of real solutions; `recorded` takes what a generator was really asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESPONSES = ROLLOUTS = TRAJECTORIES = 16
MIXED = 2 / 3
"""Problems that are kept: 40k of 60k (docs/cost.md)."""
RESPONSE_TOKENS, ROLLOUT_TOKENS = 610, 385
"""Means of the paper, or computed from it (docs/cost.md)."""
CHUNKS = 6.8
SPREAD = 0.61
"""Standard deviation of the logarithm of a solution's length: of the 1,000 solutions of
ProcessBench's MATH part, which a dozen models wrote."""
CHUNK_SPREAD = 0.44
"""The same of their numbers of steps."""
RUNAWAY = 0.01
"""Samples that never end: assumed. They are cut at `LIMIT`, and are what the end waits for."""
LIMIT = 8192
"""`annotate.max_tokens` of configs/paper-7b.yaml."""


@dataclass(frozen=True)
class Work:
    """Problems in order. The first request of a problem samples its responses, all others are made
    together when those have come."""

    requests: NDArray[np.int64]
    """Number of a problem's first request; one entry more than problems."""
    samples: NDArray[np.int64]
    """Number of a request's first sample; one entry more than requests."""
    lengths: NDArray[np.int16]
    """Tokens of each sample."""
    unit: int
    """Problems of a unit."""

    @property
    def problems(self) -> int:
        return len(self.requests) - 1

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))


def drawn(problems: int, unit: int = 8, seed: int = 0) -> Work:
    """As a 7B policy answers, by the figures above.

    Half of a length's variance is the problem's: hard ones are long in all of their samples.
    """
    rng = np.random.default_rng(seed)
    half = SPREAD / np.sqrt(2)
    level = np.exp(rng.normal(-(half**2) / 2, half, problems))
    mixed = rng.random(problems) < MIXED
    spread = np.exp(rng.normal(-(CHUNK_SPREAD**2) / 2, CHUNK_SPREAD, (problems, TRAJECTORIES)))
    chunks = np.where(mixed[:, None], np.maximum(1, np.round(CHUNKS * spread)), 1).astype(np.int64)
    per_problem = (chunks - 1).sum(axis=1)
    requests = np.concatenate([[0], np.cumsum(1 + per_problem)])
    samples = np.arange(requests[-1] + 1, dtype=np.int64) * ROLLOUTS

    # Mean of each request: of its problem's responses, or of what is left behind its prefix.
    mean = np.empty(requests[-1])
    first = np.zeros(requests[-1], bool)
    first[requests[:-1]] = True
    mean[first] = RESPONSE_TOKENS * level
    behind = np.repeat(chunks.ravel(), chunks.ravel() - 1)
    starts = np.repeat(np.cumsum(chunks.ravel() - 1) - (chunks.ravel() - 1), chunks.ravel() - 1)
    number = np.arange(len(behind)) - starts + 1
    left = 1 - number / behind
    left *= ROLLOUT_TOKENS / (left.mean() if len(left) else 1.0)
    mean[~first] = left * np.repeat(level, per_problem)
    return Work(requests, samples, _lengths(rng, mean, half), unit)


def _lengths(
    rng: np.random.Generator, mean: NDArray[np.float64], spread: float
) -> NDArray[np.int16]:
    # The mean is that of all, those that never end among them.
    ends = np.maximum(1.0, (mean - RUNAWAY * LIMIT) / (1 - RUNAWAY)).astype(np.float32)
    drawn = rng.standard_normal(len(mean) * ROLLOUTS, dtype=np.float32)
    drawn *= np.float32(spread)
    drawn -= np.float32(spread**2 / 2)
    np.exp(drawn, out=drawn)
    drawn *= np.repeat(ends, ROLLOUTS)
    drawn[rng.random(len(drawn), dtype=np.float32) < RUNAWAY] = LIMIT
    return np.clip(drawn, 1, LIMIT).astype(np.int16)


def recorded(made: Mapping[str, Sequence[Sequence[int]]], unit: int) -> Work:
    """``made``: by problem in order, the lengths of the samples of each of its requests."""
    counts = [len(requests) for requests in made.values()]
    sizes = [len(lengths) for requests in made.values() for lengths in requests]
    flat = [n for requests in made.values() for lengths in requests for n in lengths]
    return Work(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.array(flat, np.int16),
        unit,
    )
