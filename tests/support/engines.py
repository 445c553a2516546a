"""Real engines of small models, and pools of them, as most tests want theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.engine.engine import Engine, EngineOptions
from actors.pool.pool import EnginePool

if TYPE_CHECKING:
    import torch


def engine_options(model: Path | str, **changes: Any) -> EngineOptions:
    """Full precision, for answers to be compared, and a share of memory that leaves room."""
    defaults = {
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 64,
        "kv_cache_bytes": 64 * 2**20,
        "enforce_eager": True,
    }
    return EngineOptions(model=str(model), **(defaults | changes))


@contextmanager
def running_engine(model: Path | str, **changes: Any) -> Iterator[Engine]:
    engine = Engine(engine_options(model, **changes))
    engine.wait_ready(300.0)
    yield engine
    engine.shutdown()


@contextmanager
def running_pool(options: EngineOptions, count: int) -> Iterator[EnginePool]:
    """A pool on the Ray to which this process is connected."""
    pool = EnginePool(options, count=count, start_timeout_s=300.0)
    yield pool
    pool.shutdown()


def forward_logprobs(
    model: Path | str,
    ids: Sequence[int],
    start: int,
    adapter: Mapping[str, torch.Tensor] | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """What transformers says of the tokens from ``start`` on: [``len(ids) - start``].

    ``adapter``, by peft's names, is added to the weights ``scale`` (alpha / rank) times.
    """
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    weights = reference.state_dict()
    for name, a in (adapter or {}).items():
        if "lora_A" in name:
            b = adapter[name.replace("lora_A", "lora_B")]
            plain = name.removeprefix("base_model.model.").replace(".lora_A", "")
            weights[plain] += scale * (b.float() @ a.float())
    with torch.no_grad():
        scores = reference(torch.tensor([list(ids)])).logits[0].log_softmax(-1)
    return scores[torch.arange(start - 1, len(ids) - 1), torch.tensor(ids[start:])]
