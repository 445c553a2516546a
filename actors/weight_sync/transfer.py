"""What an engine is told of a transfer, before any weight moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TransferBackend = Literal["object_store", "cuda_ipc", "nccl"]


class TransferFailed(RuntimeError):
    """Weights did not arrive. Engines answer with those they had and can take the next ones."""


@dataclass(frozen=True)
class TransferSpec:
    """Where a learner waits for engines with one version of its weights."""

    backend: Literal["cuda_ipc", "nccl"]
    host: str
    port: int
    """Of the learner's `rendezvous.Rendezvous`."""
    headers: tuple[bytes, ...]
    """For every bucket, in the order they come: a safetensors header (JSON)."""
    timeout_s: float
    """For all buckets together, from the moment an engine begins."""
    rank: int = 0
    """Of this engine's first worker among all that take part; the learner is 0."""
    size: int = 0
    """How many take part, the learner included."""
