"""One side of the comparison with plain PyTorch: a process that trains on given random sequences.

    python -m benchmarks.training.torch_arm TASK.json

`benchmarks.training.torch` writes the task, starts the process and reads what it writes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stepwiser.run.periodic import repeating
from stepwiser.training.experience import Experience, ExperienceBatch

if TYPE_CHECKING:
    from actors.learner.deepspeed_worker import DeepSpeedWorker
    from actors.learner.grpo_loop import GRPOLoop
    from actors.learner.worker_group import WorkerGroup

LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class TorchTask:
    """One process of the comparison."""

    arm: Literal["ours", "torch"]
    model_dir: str
    precision: Literal["float32", "bfloat16"]
    threads: int
    shared: bool
    """Responses of a group have one prompt, as in GRPO; else each has its own."""
    prompts: int
    group_size: int
    prompt_tokens: tuple[int, int]
    """Shortest and longest; drawn evenly between."""
    response_tokens: tuple[int, int]
    micro_batch: int
    """Sequences of one forward pass of plain PyTorch."""
    token_budget: int
    """Tokens of one forward pass of ours."""
    updates: int
    """The first one warms up."""
    answer: str
    """File that `Measured` is written to."""


@dataclass(frozen=True)
class Measured:
    """What one process took."""

    seconds: tuple[float, ...]
    """Of each update after the first."""
    cpu_seconds: tuple[float, ...]
    tokens: tuple[int, ...]
    """Of its sequences, each counted with its prompt."""
    peak_bytes: int
    """Most anonymous memory that the process had."""
    norms: tuple[float, ...]
    """Of the gradient of each update, the first one included."""


def batch(task: TorchTask, update: int, vocabulary: int) -> ExperienceBatch:
    """The same for both arms."""
    rng = np.random.default_rng(update)
    experiences = []
    for group in range(task.prompts):
        length = rng.integers(*task.prompt_tokens, endpoint=True)
        prompt = rng.integers(0, vocabulary, length)
        for _ in range(task.group_size):
            if not task.shared:
                prompt = rng.integers(0, vocabulary, length)
            answer = rng.integers(0, vocabulary, rng.integers(*task.response_tokens, endpoint=True))
            experiences.append(
                Experience(
                    prompt_ids=prompt.tolist(),
                    response_ids=answer.tolist(),
                    advantage=float(rng.normal()),
                    reward=0.0,
                    group=group,
                    weight_version=update,
                )
            )
    return ExperienceBatch.from_experiences(experiences)


def plain_update(task: TorchTask) -> Callable[[ExperienceBatch], float]:
    """Plain PyTorch: an update on a batch returns the norm of its gradient.

    Sequences of like length travel together. Prompts are padded on the left and responses on the
    right, so that logits are computed of the responses' positions alone.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from stepwiser.training.grpo import GRPOLossConfig, grpo_loss, token_logprobs

    torch.set_num_threads(task.threads)
    model = AutoModelForCausalLM.from_pretrained(
        task.model_dir, dtype=getattr(torch, task.precision)
    ).eval()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )

    def update(batch: ExperienceBatch) -> float:
        denominator = float(len(batch.response_ids))
        lengths = np.diff(batch.prompt_offsets) + batch.response_lengths
        order = np.argsort(lengths)
        for start in range(0, len(order), task.micro_batch):
            chosen = order[start : start + task.micro_batch]
            prompts = [batch.prompt(i) for i in chosen]
            answers = [batch.response(i) for i in chosen]
            wide, long = max(map(len, prompts)), max(map(len, answers))
            ids = np.zeros((len(chosen), wide + long), dtype=np.int64)
            seen = np.zeros_like(ids)
            for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
                ids[row, wide - len(prompt) : wide] = prompt
                ids[row, wide : wide + len(answer)] = answer
                seen[row, wide - len(prompt) : wide + len(answer)] = 1
            tokens, mask = torch.from_numpy(ids), torch.from_numpy(seen)
            logits = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                logits_to_keep=long + 1,
                use_cache=False,
            ).logits[:, :-1]
            logprobs = token_logprobs(logits, tokens[:, wide:])
            output = grpo_loss(
                logprobs,
                logprobs.detach(),
                torch.from_numpy(batch.advantages[chosen]),
                mask[:, wide:],
                GRPOLossConfig(),
                denominator,
            )
            output.loss.backward()
            del logits, logprobs, output
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(norm)

    return update


def our_update(task: TorchTask, folder: str) -> Callable[[ExperienceBatch], float]:
    """A rank of the learner."""
    loop = our_loop(task, folder, our_worker(task, folder))
    return lambda batch: float(loop.train(int(batch.weight_versions[0]), batch)["gradient_norm"])


def our_worker(task: TorchTask, folder: str, gpu: bool = False) -> DeepSpeedWorker:
    """The learner's model on this process, with the group of one that Ray Train would set up."""
    import torch

    from actors.learner.deepspeed_worker import DeepSpeedWorker
    from actors.learner.worker_group import engine_config

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    if not torch.distributed.is_initialized():
        meeting = f"file://{folder}/rendezvous"
        torch.distributed.init_process_group(
            "nccl" if gpu else "gloo", init_method=meeting, rank=0, world_size=1
        )
    group = _worker_group(task, folder, 1.0 if gpu else 0.0)
    return DeepSpeedWorker(engine_config(group, task.model_dir, 1.0, 0.0))


def _worker_group(task: TorchTask, folder: str, gpus: float) -> WorkerGroup:
    from actors.learner.worker_group import WorkerGroup

    return WorkerGroup(
        name="judge",
        storage_path=folder,
        threads=task.threads,
        precision=task.precision,
        gpus_per_worker=gpus,
        max_tokens_per_microbatch=task.token_budget,
    )


def our_loop(task: TorchTask, folder: str, worker: DeepSpeedWorker) -> GRPOLoop:
    """Training of that model with the token budget of a task."""
    from actors.learner.grpo_loop import GRPOLoop, GRPOTrainOptions
    from stepwiser.training.grpo import GRPOLossConfig
    from stepwiser.training.schedule import LearningRate

    options = GRPOTrainOptions(
        group=_worker_group(task, folder, 0.0),
        model_dir=task.model_dir,
        output_dir=f"{folder}/judge",
        metrics_path=f"{folder}/metrics.jsonl",
        steps=task.updates,
        minibatches=1,
        learning_rate=LearningRate(LEARNING_RATE),
        temperature=1.0,
        max_response_length=task.response_tokens[1],
        loss=GRPOLossConfig(),
    )
    return GRPOLoop(options, None, worker)


def measure(task: TorchTask) -> Measured:
    """Train; the first update is left out."""
    import torch
    from transformers import AutoConfig

    vocabulary = AutoConfig.from_pretrained(task.model_dir).vocab_size
    peak = 0

    def look() -> None:
        nonlocal peak
        peak = max(peak, anonymous_bytes())

    seconds, cpu, tokens, norms = [], [], [], []
    with tempfile.TemporaryDirectory() as folder, repeating(look, 0.02):
        update = plain_update(task) if task.arm == "torch" else our_update(task, folder)
        for number in range(task.updates):
            given = batch(task, number, vocabulary)
            began, spent = time.monotonic(), time.process_time()
            norms.append(update(given))
            if number:
                seconds.append(time.monotonic() - began)
                cpu.append(time.process_time() - spent)
                tokens.append(len(given.prompt_ids) + len(given.response_ids))
        if task.arm == "ours":
            torch.distributed.destroy_process_group()
    return Measured(tuple(seconds), tuple(cpu), tuple(tokens), peak, tuple(norms))


def anonymous_bytes() -> int:
    """What the kernel cannot take back of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this measures on Linux only")


def main() -> None:
    raw: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    task = TorchTask(**raw)
    Path(task.answer).write_text(json.dumps(asdict(measure(task))))


if __name__ == "__main__":
    main()
