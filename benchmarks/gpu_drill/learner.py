"""Training on one card: tokens/s, share of its arithmetic and peak memory, by tokens of a pass."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from statistics import median
from typing import Any

from actors.learner.packed_attention import choose
from benchmarks.gpu_drill.figures import Record
from benchmarks.gpu_drill.settings import Drill
from benchmarks.training.torch_arm import (
    TorchTask,
    anonymous_bytes,
    batch,
    our_loop,
    our_worker,
)
from stepwiser.prompting.hub.folders import model_folder, resolve_model
from stepwiser.run.memory.model_size import ModelSize, read_model_size
from stepwiser.training.experience import ExperienceBatch

UPDATES = 4
"""The first one warms up."""
PASSES = 3
"""Forward passes of an update."""
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bfloat16, as their maker says, by a part of the card's name."""


def measure_learner(drill: Drill, record: Record) -> None:
    """The learner's updates on random groups that share a prompt, by groups of a pass.

    `mfu` and `peak_gb_16k` are those of the second size, which is 16,384 tokens on a card.
    """
    import torch

    size = drill.size
    responses, prompt, response = size.group
    model = resolve_model(drill.model)
    shape = read_model_size(model_folder(model))
    assert shape is not None
    gpu = not drill.dry
    peak = peak_flops(gpu)
    record(peak_tflops=peak / 1e12, parameters=shape.parameters)
    with tempfile.TemporaryDirectory() as folder:
        task = TorchTask(
            arm="ours",
            model_dir=model,
            precision="float32" if drill.dry else "bfloat16",
            threads=1,
            shared=True,
            prompts=0,
            group_size=responses,
            prompt_tokens=(prompt, prompt),
            response_tokens=(response, response),
            micro_batch=0,
            token_budget=max(size.micro_batches) * (prompt + responses * response),
            updates=UPDATES,
            answer="",
        )
        worker = our_worker(task, folder, gpu)
        name, _ = choose(worker.device.type, getattr(torch, drill.precision))
        record(attention=name)

        def measured(groups: int) -> dict[str, Any]:
            own = task_of(task, groups, groups * (prompt + responses * response))
            loop = our_loop(own, folder, worker)
            seconds, peak_bytes = [], 0
            for number in range(UPDATES):
                given = batch(own, number, shape.vocabulary)
                if gpu:
                    torch.cuda.reset_peak_memory_stats()
                began = time.monotonic()
                loop.train(int(given.weight_versions[0]), given)
                if number:
                    seconds.append(time.monotonic() - began)
                used = torch.cuda.max_memory_allocated() if gpu else anonymous_bytes()
                peak_bytes = max(peak_bytes, used)
            found = figures(shape, given, own, median(seconds), peak)
            return found | {"peak_gb": peak_bytes / 1e9}

        for turn, groups in enumerate(size.micro_batches):
            found = measured(groups)
            record(**{f"{groups * (prompt + responses * response)} tokens": found})
            if turn == 1:
                record(mfu=found["mfu"], peak_gb_16k=found["peak_gb"])
        if gpu:
            # Last, as it takes long: whether compiled layers would pay.
            for layer in worker.engine.module.model.get_decoder().layers:
                layer.compile()
            record(**{"16k tokens, layers compiled": measured(size.micro_batches[1])})
        torch.distributed.destroy_process_group()


def task_of(task: TorchTask, groups: int, tokens: int) -> TorchTask:
    """Updates of `PASSES` passes, each of so many groups."""
    return replace(task, prompts=groups * PASSES, token_budget=tokens)


def figures(
    shape: ModelSize, given: ExperienceBatch, task: TorchTask, seconds: float, peak: float
) -> dict[str, Any]:
    """Tokens/s, computed and as sequences have them, and the share of the card's arithmetic."""
    prompts, responses = task.prompts * task.prompt_tokens[1], len(given.response_ids)
    whole = len(given.prompt_ids) + responses
    return {
        "tokens_per_s": (prompts + responses) / seconds,
        "sequence_tokens_per_s": whole / seconds,
        "mfu": useful_flops(shape, task) / seconds / peak,
        "update_s": seconds,
    }


def useful_flops(shape: ModelSize, task: TorchTask) -> float:
    """Of an update: matrix products of what is computed, forward once and backward twice.

    A prompt counts once for its group, logits at the responses alone, attention for the pairs that
    see each other; nothing that is computed again counts twice.
    """
    prompt, response = task.prompt_tokens[1], task.response_tokens[1]
    embedding = shape.vocabulary * shape.hidden
    key_width = shape.kv_heads * shape.head_dim
    layer = 2 * shape.hidden * (shape.attention + key_width) + 3 * shape.hidden * shape.intermediate
    pairs = prompt * prompt / 2.0
    pairs += task.group_size * (response * prompt + response * response / 2)
    tokens = prompt + task.group_size * response
    group = 2.0 * tokens * shape.layers * layer
    group += 2 * task.group_size * response * embedding
    group += 4 * pairs * shape.layers * shape.attention
    return 3.0 * group * task.prompts


def peak_flops(gpu: bool) -> float:
    """What the maker says of this card; of one that is not known, or a CPU, a large product."""
    import torch

    if gpu:
        name = torch.cuda.get_device_name()
        for part, flops in PEAK_FLOPS.items():
            if part in name:
                return flops
    size = 8192 if gpu else 1024
    one = torch.randn(size, size, dtype=torch.bfloat16 if gpu else torch.float32)
    one = one.cuda() if gpu else one
    best = float("inf")
    for _ in range(5):
        began = time.monotonic()
        one @ one
        if gpu:
            torch.cuda.synchronize()
        best = min(best, time.monotonic() - began)
    return 2 * size**3 / best
