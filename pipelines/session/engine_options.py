"""From the configuration to engine options."""

from __future__ import annotations

import hashlib
import json

from actors.engine.engine import EngineOptions
from stepwiser.config import RunConfig
from stepwiser.prompting.hub.folders import model_folder

NAMES = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
"""Keys of a model's config.json that say nothing about the shape of its weights."""


def engine_options(config: RunConfig, model: str) -> EngineOptions:
    """Engine options of a run for one model."""
    engine = config.engine
    return EngineOptions(
        model=model,
        dtype=engine.dtype,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        kv_cache_bytes=engine.kv_cache_mb * 2**20 if engine.kv_cache_mb else None,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        tensor_parallel_size=engine.tensor_parallel_size,
        enforce_eager=engine.enforce_eager,
        multiprocess=engine.multiprocess,
        seed=config.seed,
        enable_sleep=config.train.colocated,
        trust_remote_code=config.trust_remote_code,
        allow_pickled_weights=config.allow_pickled_weights,
    )


def architecture(model: str) -> str:
    """Models with the same answer can take each other's weights in a running engine."""
    path = model_folder(model, weights=False)
    shape = json.loads((path / "config.json").read_text())
    for name in NAMES:
        shape.pop(name, None)
    tokenizer = path / "tokenizer.json"
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    if any(path.glob("*.bin")) and not any(path.glob("*.safetensors")):
        digest.update(model.encode())  # a running engine takes safetensors only
    if tokenizer.is_file():
        digest.update(tokenizer.read_bytes())
    return digest.hexdigest()[:16]
