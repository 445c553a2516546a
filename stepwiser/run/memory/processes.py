"""Bytes of one process of a run at its largest moment, by what they are for.

What counts is memory that the kernel cannot take back: anonymous pages (RSS less what is shared).
Pages of files, libraries and mapped checkpoints, can be dropped and do not count; objects in Ray's
store lie in shared memory and count once, as the store.

The constants were measured on Linux x86-64 with Python 3.11, torch 2.13, vLLM 0.32 (CPU), DeepSpeed
0.19.8, Ray 2.60 and transformers 5.19. Sizes on a GPU follow the same source code and were not
measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stepwiser.config import RunConfig
from stepwiser.run.memory.model_size import WIDTHS, ModelSize
from stepwiser.run.resource_plan import STAGES_WITH_LEARNERS as LEARNER_STAGES
from stepwiser.run.resource_plan import has_engines

MIB = 2**20

Parts = Mapping[str, float]
"""Bytes by what they are for."""

ENGINE_BASE = 430 * MIB
"""An engine's process: what it imports."""
SEQUENCE = 0.2 * MIB
"""What an engine holds of each sequence that it decodes, beside its keys and values."""
LEARNER_BASE = 430 * MIB
"""A learner's process: 390 for what it imports, 40 for Ray."""
PACKED = 2
"""Times that a CPU engine has its weights: as they came, and packed for its matrix products."""
UPDATE_COPIES = 2.0
"""New weights in an engine while they are loaded: all of them as bytes, and tensors of a part."""
DRIVER = 300 * MIB
RAY = 500 * MIB
"""Head, raylet and agents of one node, and workers that wait for something to do."""
REGISTRY = 100 * MIB
LABELER = 220 * MIB
COLLECTOR = 370 * MIB
TOKEN = 1800.0
"""Bytes of one entry of a tokenizer's vocabulary, in each process that has one."""
CONTROLLER = 150 * MIB
CUDA_HOST = 2048 * MIB
"""What CUDA and its libraries take of host memory in each process."""
CUDA_DEVICE = 600 * MIB
"""The context of a process on a GPU."""
WORKING, WORKING_GPU = 2.4, 1.3
"""A backward pass holds as much again as the forward pass has saved, and on a CPU freed memory that
the allocator keeps: 2.3 to 2.6 from 4,000 to 60,000 tokens of the packaged model."""
LOGIT_COPIES = 4.5
"""Float32 copies of whole logits at the start of a backward pass: one is saved, the others are the
gradient's."""
LOGIT_BLOCK, LOGIT_BLOCK_GPU, LEAST_WORDS = 2**20, 2**26, 256
"""Logits that exist at once otherwise (`stepwiser/training/vocabulary.py`)."""
SAMPLING_COPIES = 4
"""Float32 copies of the logits in an engine that samples with log-probs."""
BATCHED_TOKENS = 2048
"""Tokens of one step of an engine, by vLLM's default."""
MARK_EVERY = 16
"""Tokens of a solution for each verdict that the discriminative judge learns, at least."""
CPU_KV_CACHE = 512 * MIB
"""KV cache of a CPU engine without engine.kv_cache_mb."""
BUCKET = 500_000_000
"""Gradients, in numbers, that DeepSpeed reduces at once (its default)."""


@dataclass(frozen=True)
class MicroBatch:
    """The largest forward pass of a learner: G prompts of P tokens, S responses of R."""

    prompts: int
    prompt_tokens: int
    responses: int
    response_tokens: int
    chosen: int
    """Positions that get logits."""

    @property
    def tokens(self) -> int:
        return self.prompts * self.prompt_tokens + self.responses * self.response_tokens


def grpo_micro_batch(config: RunConfig) -> MicroBatch:
    """Groups of the longest prompts and responses that the configuration lets in."""
    train, learner = config.train, config.learner
    budget = learner.max_tokens_per_microbatch
    response = min(train.max_response_tokens, config.judge_max_tokens)
    context = min(config.engine.max_model_len, budget)
    prompt = max(1, min(config.label.max_prompt_tokens, context - response))
    # A group that is longer than the budget is cut, each part with the prompt of its own.
    together = max(1, min(train.group_size, (budget - prompt) // response))
    unit = prompt + together * response
    groups = train.minibatch_prompts * math.ceil(train.group_size / together)
    share = max(1, math.ceil(groups / learner.workers))
    passes = math.ceil(share * unit / budget)
    units = max(1, min(budget // unit, math.ceil(share / passes)))
    responses = units * together
    return MicroBatch(units, prompt, responses, response, responses * response)


def sft_micro_batch(config: RunConfig, examples: int) -> MicroBatch:
    """Whole examples of the longest kind, ``examples`` a step over all ranks."""
    learner = config.learner
    longest = min(config.engine.max_model_len, learner.max_tokens_per_microbatch)
    share = math.ceil(examples / learner.workers)
    rows = max(1, min(learner.max_tokens_per_microbatch // longest, share))
    return MicroBatch(rows, longest, 0, 0, chosen=rows * longest)


def engine_host(config: RunConfig, stage: str, size: ModelSize) -> Parts:
    """Host memory of one engine."""
    engine = config.engine
    width = _engine_width(config, size)
    weights = size.parameters * width
    published = _trained(config, size) * _learner_width(config)
    if engine.gpus:
        # A transfer from the learner, or sleep, takes the weights through host memory.
        return {"base": ENGINE_BASE + CUDA_HOST, "copies": published if stage == "train" else 0.0}
    cache = engine.kv_cache_mb * MIB if engine.kv_cache_mb else CPU_KV_CACHE
    processes = 2 if engine.multiprocess else 1
    return {
        "base": ENGINE_BASE * processes + SEQUENCE * engine.max_num_seqs,
        # The packed output layer of tied embeddings comes on top.
        "weights": PACKED * weights + size.vocabulary * size.hidden * width,
        "KV cache": cache,
        "activations": _sampling(config, size),
        "copies": UPDATE_COPIES * published if stage == "train" else 0.0,
    }


def engine_gpu(config: RunConfig, stage: str, size: ModelSize) -> Parts:
    """Memory of one engine on each of its GPUs."""
    engine = config.engine
    if not engine.gpus:
        return {}
    weights = size.parameters * _engine_width(config, size) / engine.tensor_parallel_size
    cache = (engine.kv_cache_mb or 0) * MIB / engine.tensor_parallel_size
    # Without a size of its own the cache takes what is left of gpu_memory_utilization; it must
    # hold one sequence of the longest kind.
    one = engine.max_model_len * size.kv_token(_engine_width(config, size))
    return {
        "base": CUDA_DEVICE,
        "weights": weights,
        "KV cache": cache or one / engine.tensor_parallel_size,
        "activations": _sampling(config, size),
    }


def scorer_host(config: RunConfig, size: ModelSize) -> Parts:
    """Host memory of one process that scores steps (`actors/scoring`): weights once, as loaded."""
    if config.engine.gpus:
        return {"base": LEARNER_BASE + CUDA_HOST}
    return {"base": LEARNER_BASE, "weights": size.parameters * _engine_width(config, size)}


def scorer_gpu(config: RunConfig, size: ModelSize) -> Parts:
    """Memory of one process that scores steps on its GPU."""
    if not config.engine.gpus:
        return {}
    return {"base": CUDA_DEVICE, "weights": size.parameters * _engine_width(config, size)}


def learner_host(config: RunConfig, stage: str, size: ModelSize) -> Parts:
    """Host memory of one rank."""
    if config.learner.gpus:
        bucket = config.train.weight_bucket_mb * MIB
        return {
            "base": LEARNER_BASE + CUDA_HOST,
            "copies": min(2 * bucket, _trained(config, size) * _learner_width(config)),
        }
    return {"base": LEARNER_BASE, **_learner(config, stage, size)}


def learner_gpu(config: RunConfig, stage: str, size: ModelSize) -> Parts:
    """Memory of one rank on its GPU."""
    if not config.learner.gpus:
        return {}
    return {"base": CUDA_DEVICE, **_learner(config, stage, size)}


def _learner(config: RunConfig, stage: str, size: ModelSize) -> dict[str, float]:
    """A rank at the end of a backward pass, as DeepSpeed's ZeRO-2 has it: float32 master weights
    and moments in shares, and gradients."""
    learner, ranks = config.learner, config.learner.workers
    width, parameters = _learner_width(config), size.parameters
    trained = _trained(config, size)
    split = ranks if learner.zero_stage == 3 else 1
    # Reference weights of the KL stay whole on every rank; a new adapter is only switched off.
    asked = stage == "train" and config.train.kl_coefficient > 0
    own = not learner.lora.rank or config.train.adapter is not None
    reference = parameters * width if asked and own else 0.0
    share = 4 * trained / ranks
    # In bfloat16 shares add up, and each pass fills a bucket beside them while its activations go;
    # in float32 whole gradients add up, and the bucket comes when there are none any more.
    bucket = min(trained, BUCKET) * width
    passes = [activations(config, size, batch) for batch in _micro_batches(config, stage)]
    needed = max(passes, default=0.0)
    if learner.precision == "bfloat16":
        gradients = share + bucket
    else:
        gradients = 4 * trained / split + max(0.0, bucket - needed)
    parts = {
        "weights": parameters * width / split + reference,
        "optimizer": 3 * share,
        "gradients": gradients,
        "activations": needed,
    }
    if learner.lora.rank and not learner.gpus:
        # The merged model in float32, when the gradients have gone.
        parts["export"] = max(0.0, 4 * parameters - gradients - needed)
    return parts


def _trained(config: RunConfig, size: ModelSize) -> float:
    """Numbers that have gradients: all, or those of adapters beside every linear layer."""
    rank = config.learner.lora.rank
    if not rank:
        return size.parameters
    hidden, queries, keys = size.hidden, size.attention, size.kv_heads * size.head_dim
    attention = 2 * (hidden + queries) + 2 * (hidden + keys)
    return rank * size.layers * (attention + 3 * (hidden + size.intermediate))


def _micro_batches(config: RunConfig, stage: str) -> list[MicroBatch]:
    if stage == "segment":
        return [sft_micro_batch(config, config.segment.sft.batch_size)]
    if stage == "finetune":
        return [sft_micro_batch(config, config.finetune.sft.batch_size)]
    method, batches = config.train.method, []
    if method == "grpo":
        batches.append(grpo_micro_batch(config))
    if method == "rs_ft" or config.train.warm_start:
        batches.append(sft_micro_batch(config, config.rejection.sft.batch_size))
    if method == "discriminative" or config.discriminative.enabled:
        marks = sft_micro_batch(config, config.discriminative.sft.batch_size)
        batches.append(replace(marks, chosen=marks.tokens // MARK_EVERY))
    return batches


def activations(config: RunConfig, size: ModelSize, batch: MicroBatch) -> float:
    """Bytes that a forward pass leaves for its backward pass, and what that works with."""
    width = _learner_width(config)
    working = WORKING_GPU if config.learner.gpus else WORKING
    layer = _saved_layer(size, batch, width)
    if config.learner.gradient_checkpointing:
        saved = size.layers * batch.tokens * size.hidden * width + layer
    else:
        saved = size.layers * layer
    return saved * working + _logits(config, size, batch)


def _logits(config: RunConfig, size: ModelSize, batch: MicroBatch) -> float:
    """A block of them, in float32 twice; or all, in every copy."""
    width = _learner_width(config)
    numbers = batch.chosen * size.vocabulary
    if size.whole_logits:
        return numbers * (width + 4 * LOGIT_COPIES)
    block = LOGIT_BLOCK_GPU if config.learner.gpus else LOGIT_BLOCK
    return min(numbers, max(block, batch.chosen * LEAST_WORDS)) * (2 * width + 8)


def _saved_layer(size: ModelSize, batch: MicroBatch, width: int) -> float:
    """One decoder layer of the Llama kind: two norms, attention, gated linear units."""
    tokens = batch.tokens
    # Each norm keeps its input in float32, and twice what it makes of it.
    norms = 2 * tokens * size.hidden * (4 + 2 * width)
    gates = 4 * tokens * size.intermediate * width
    prompts = batch.prompts * batch.prompt_tokens
    keys = prompts + batch.responses * (batch.prompt_tokens + batch.response_tokens)
    # Queries and outputs of padded rows, keys and values once a head, and the flat output.
    attention = (2 * tokens + 2 * keys + tokens) * size.attention * width
    mask = batch.responses * batch.response_tokens
    mask *= (batch.prompt_tokens + batch.response_tokens) * width
    return norms + gates + attention + mask


def object_store(config: RunConfig, stage: str, size: ModelSize) -> Parts:
    """Ray's objects: what the learner trains, and the copy that the engines' registry keeps."""
    room = config.cluster.object_store_mb * MIB
    copies = 3 * _trained(config, size) * _learner_width(config) if stage == "train" else 0.0
    return {"copies": min(room, copies)}


def other_processes(
    config: RunConfig, stage: str, vocabulary: int
) -> Sequence[tuple[str, int, float]]:
    """Role, number and bytes of what else runs beside the driver; ``vocabulary`` in tokens."""
    words = TOKEN * vocabulary
    engines = max(1, config.engine.count)
    found = [("driver", 1, DRIVER + words), ("Ray", 1, float(RAY))]
    if has_engines(config, stage):
        found.append(("engine registry", 1, float(REGISTRY)))
    if stage == "annotate" or (stage == "train" and config.train.live):
        found.append(("labeler", min(16, engines), LABELER + words))
    if stage == "train":
        found.append(("collector", 1, COLLECTOR + words))
    if stage in LEARNER_STAGES:
        found.append(("training controller", 1, float(CONTROLLER)))
    return found


def _sampling(config: RunConfig, size: ModelSize) -> float:
    """What a step of the largest batch works with: the layers, and logits of every sequence."""
    engine = config.engine
    batched = min(BATCHED_TOKENS, engine.max_num_seqs * engine.max_model_len)
    width = _engine_width(config, size)
    layer = batched * (2 * size.hidden + size.attention + 3 * size.intermediate) * width
    return layer + engine.max_num_seqs * size.vocabulary * 4 * SAMPLING_COPIES


def _engine_width(config: RunConfig, size: ModelSize) -> int:
    return WIDTHS.get(config.engine.dtype, size.width)


def _learner_width(config: RunConfig) -> int:
    return WIDTHS[config.learner.precision]
