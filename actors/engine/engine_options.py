"""How an engine is built."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineOptions:
    """How one engine is built."""

    model: str
    """A directory that the engine's node can read, or a name on the Hub (`org/name@commit`)."""
    dtype: str = "auto"
    """``float32``, ``bfloat16`` or ``auto`` (what the checkpoint says)."""
    max_model_len: int = 2048
    """Longest prompt plus continuation, in tokens."""
    max_num_seqs: int = 256
    """Sequences decoded at once."""
    max_num_batched_tokens: int | None = None
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    multiprocess: bool = False
    """Run vLLM's core in a process of its own."""
    seed: int = 0
    enable_sleep: bool = False
    """Let `Engine.sleep` free GPU memory; without effect on a CPU."""
    trust_remote_code: bool = False
    """Run code that the model brings."""
    allow_pickled_weights: bool = False
    """Load weights that are no safetensors."""
    adapter_rank: int = 0
    """Rank that there is room for; above 0 new weights are adapters, and the model's stay."""
    adapter_versions: int = 1
    """Versions of the adapter that run in one step; requests of others wait."""
