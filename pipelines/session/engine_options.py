"""From the configuration to engine options."""

from __future__ import annotations

import hashlib
import json
import os

from actors.engine.engine import EngineOptions
from stepwiser.config import RunConfig
from stepwiser.config.models import EngineConfig
from stepwiser.prompting.hub.folders import model_folder
from stepwiser.run.resource_plan import plan_stage

SHARE = 0.9
"""Of a GPU's memory for all engines on it; the rest is what CUDA takes beside."""
NAMES = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
"""Keys of a model's config.json that say nothing about the shape of its weights."""


def engine_options(config: RunConfig, model: str, adapters: bool = False) -> EngineOptions:
    """Engine options of a run for one model.

    ``adapters``: new weights will be adapters of `learner.lora`.
    """
    engine = config.engine
    return EngineOptions(
        model=model,
        dtype=engine.dtype,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        kv_cache_bytes=engine.kv_cache_mb * 2**20 if engine.kv_cache_mb else None,
        gpu_memory_utilization=memory_share(engine),
        tensor_parallel_size=engine.tensor_parallel_size,
        enforce_eager=engine.enforce_eager,
        multiprocess=engine.multiprocess,
        seed=config.seed,
        enable_sleep=config.train.colocated,
        trust_remote_code=config.trust_remote_code,
        allow_pickled_weights=config.allow_pickled_weights,
        adapter_rank=config.learner.lora.rank if adapters else 0,
        # Samples under way are at most so many versions old, and the newest is one more.
        adapter_versions=config.train.staleness + 1,
    )


def memory_share(engine: EngineConfig) -> float | None:
    """Share of a GPU's memory for one engine; None, which is vLLM's own, where it has a whole GPU.

    Those that share a GPU would each take nine tenths of it else.
    """
    if engine.gpu_memory_utilization is not None or not 0 < engine.gpus < 1:
        return engine.gpu_memory_utilization
    return SHARE * engine.gpus


def engine_threads(config: RunConfig, stage: str, count: int) -> int:
    """CPU threads of one engine, where ``count`` are started for a stage.

    Engines without a GPU compute with all cores that nobody else does: those of `engine.cpus` where
    that is set, else an even share of the machine's. A learner takes turns with them, unless it
    trains while they sample.
    """
    engine = config.engine
    if engine.cpus is not None or engine.gpus:
        return max(1, int(engine.ray_cpus))
    needs = plan_stage(config, stage).needs
    together = sum(need.count for need in needs if "engine" in need.role)
    busy = stage == "train" and config.train.staleness
    taken = config.learner.workers * config.learner.ray_cpus if busy else 0
    return share_of_cores(config, max(count, together), taken)


def share_of_cores(config: RunConfig, processes: int, taken: int = 0) -> int:
    """Threads of one of some processes that compute with all cores of a machine but those taken.

    On a joined cluster, whose machines nobody has counted, it is one.
    """
    if _joins(config):
        return 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit():
        return max(1, int(given))
    return max(1, (len(os.sched_getaffinity(0)) - taken) // processes)


def _joins(config: RunConfig) -> bool:
    """Whether Ray is there already, on whatever machines."""
    return bool(config.cluster.address or os.environ.get("RAY_ADDRESS"))


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
