"""The learner beside plain PyTorch on the same sequences, cores and model, on a CPU.

Plain PyTorch is what one writes without a library: transformers' model in bfloat16 with its own
attention, micro-batches of like lengths padded to their longest, logits of the responses alone, the
same loss from their log-probs, `backward`, and torch's fused AdamW on the bfloat16 weights. Ours is
a rank of the learner (DeepSpeed ZeRO-2, float32 master weights), which computes the entropy as
well. Both run in processes of their own, in turn; the first update of each is left out.

A token is one of a sequence, prompt included, whether it was computed again or shared with others
of its group. `train_vs_torch` is for groups with one prompt each, as GRPO has them;
`train_vs_torch_alone` for sequences that share nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.command import CONFIG
from benchmarks.training.torch_arm import Measured, TorchTask

ROUNDS, QUICK_ROUNDS = 3, 1
ARMS = ("torch", "ours", "ours, alone")
SMALL = {
    "vocab_size": 32768,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


def measure_torch(out: Path, quick: bool, model: str | None) -> dict[str, Any]:
    """``train_vs_torch``, ``train_vs_torch_alone``, and ``torch_arms``: of each arm tokens/s, the
    same of CPU time, and peak memory in MB. ``model``: a folder; by default a small random one."""
    out.mkdir(parents=True, exist_ok=True)
    task = TorchTask(
        arm="torch",
        model_dir=model or _make_model(out / "small"),
        precision="bfloat16",
        threads=len(os.sched_getaffinity(0)),
        shared=True,
        prompts=4,
        group_size=4,
        prompt_tokens=(200, 400),
        response_tokens=(60, 200),
        micro_batch=4,
        token_budget=4096,
        updates=3,
        answer="",
    )
    found: dict[str, list[Measured]] = {arm: [] for arm in ARMS}
    for turn in range(QUICK_ROUNDS if quick else ROUNDS):
        # The first one in turn: a machine may get slower or faster meanwhile.
        for arm in ARMS if turn % 2 == 0 else reversed(ARMS):
            own = replace(
                task, arm="torch" if arm == "torch" else "ours", shared=arm != "ours, alone"
            )
            found[arm].append(run_arm(own, out))
    return summarize(found)


def run_arm(task: TorchTask, folder: Path) -> Measured:
    """One process. Raises RuntimeError with what it last said."""
    file = folder / "task.json"
    file.write_text(json.dumps(asdict(replace(task, answer=str(folder / "answer.json")))))
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.training.torch_arm", str(file)],
        env=os.environ
        | {
            "OMP_NUM_THREADS": str(task.threads),
            "DS_ACCELERATOR": "cpu",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(CONFIG.parent.parent),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise RuntimeError(
            f"the arm {task.arm} ended with {finished.returncode}: {finished.stderr[-2000:]}"
        )
    return Measured(**json.loads((folder / "answer.json").read_text()))


def summarize(found: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    """Figures of the rounds."""
    arms = {}
    for arm, rounds in found.items():
        arms[arm] = {
            "tokens_per_s": median(_rates(rounds, "seconds")),
            "tokens_per_cpu_s": median(_rates(rounds, "cpu_seconds")),
            "peak_mb": max(one.peak_bytes for one in rounds) / 1e6,
        }
    plain = arms["torch"]["tokens_per_s"]
    return {
        "train_vs_torch": arms["ours"]["tokens_per_s"] / plain,
        "train_vs_torch_alone": arms["ours, alone"]["tokens_per_s"] / plain,
        "torch_arms": arms,
    }


def _rates(rounds: Sequence[Measured], clock: str) -> list[float]:
    """Tokens/s of every update."""
    return [
        tokens / seconds
        for one in rounds
        for tokens, seconds in zip(one.tokens, getattr(one, clock), strict=True)
    ]


def _make_model(directory: Path) -> str:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(**SMALL, tie_word_embeddings=True, dtype="bfloat16")
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return str(directory)
