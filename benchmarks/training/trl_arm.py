"""TRL's `GRPOTrainer` on prompts that are given to it: one process (or one rank) of the comparison.

    python -m benchmarks.training.trl_arm TASK.json
    python -m torch.distributed.run --nproc-per-node 2 -m benchmarks.training.trl_arm TASK.json

`benchmarks.training.trl` writes the task and reads what this writes beside it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TRLTask:
    """One training; the names on the right of the comments are TRL's."""

    model_dir: str
    prompts: str
    """JSON: the conversations of all steps in their order, each with its label."""
    answer: str
    """File that the times and rewards are written to."""
    seed: int
    steps: int
    """Each samples ``prompts_per_step`` prompts and makes ``updates`` optimizer updates."""
    prompts_per_step: int
    group_size: int
    """num_generations"""
    updates: int
    micro_batch: int
    """Completions of one forward pass of one process: per_device_train_batch_size"""
    processes: int
    threads: int
    """Of a process."""
    continuous_batching: bool
    """use_transformers_continuous_batching, else transformers' padded generate."""
    max_response_tokens: int
    """max_completion_length"""
    temperature: float
    learning_rate: float
    clip_low: float
    clip_high: float
    max_grad_norm: float
    weight_decay: float


def trainer_settings(task: TRLTask) -> dict[str, Any]:
    """Arguments of GRPOConfig that make TRL do the work of one of our steps in one generation.

    TRL samples once every ``steps_per_generation`` micro-batches, and updates once every
    ``gradient_accumulation_steps``: a generation batch of all completions of a step, cut into
    ``updates`` updates. Every completion is trained on once (``num_iterations`` is 1), and old
    log-probs come from a pass over the whole batch before the first update.

    Raises ValueError where the micro-batches do not fit the updates.
    """
    completions = task.prompts_per_step * task.group_size
    together = task.micro_batch * task.processes
    accumulation, rest = divmod(completions, task.updates * together)
    if rest or not accumulation:
        raise ValueError(
            f"{task.updates} updates of {task.processes} processes with micro-batches of "
            f"{task.micro_batch} do not divide {completions} completions"
        )
    return {
        "per_device_train_batch_size": task.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": accumulation * task.updates,
        "num_iterations": 1,
        "max_steps": task.steps * task.updates,
        "num_generations": task.group_size,
        "max_completion_length": task.max_response_tokens,
        "temperature": task.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,  # as our learner has it
        "weight_decay": task.weight_decay,
        "max_grad_norm": task.max_grad_norm,
        "epsilon": task.clip_low,
        "epsilon_high": task.clip_high,
        "beta": 0.0,
        "scale_rewards": "group",
        "loss_type": "dapo",  # token mean over the global batch
        "mask_truncated_completions": False,
        "shuffle_dataset": False,
        "use_transformers_continuous_batching": task.continuous_batching,
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "seed": task.seed,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def train(task: TRLTask) -> dict[str, list[float]]:
    """The whole training; seconds at which each step was done, and each step's mean reward."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from stepwiser.prompting.verdicts import parse_verdict
    from stepwiser.training.rewards import verdict_reward

    torch.set_num_threads(task.threads)
    done: list[float] = []
    rewards: list[float] = []
    lengths: list[float] = []

    def reward(
        completions: list[Any], label: list[bool], completion_ids: list[list[int]], **others: Any
    ) -> list[float]:
        earned = [
            verdict_reward(parse_verdict(messages[0]["content"]), right)
            for messages, right in zip(completions, label, strict=True)
        ]
        rewards.append(sum(earned) / len(earned))
        lengths.append(sum(map(len, completion_ids)) / len(completion_ids))
        return earned

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step % task.updates == 0:
                done.append(time.monotonic())

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(task.model_dir, dtype=torch.float32),
        reward_funcs=reward,
        args=GRPOConfig(output_dir=task.answer + ".trainer", **trainer_settings(task)),
        train_dataset=Dataset.from_list(json.loads(Path(task.prompts).read_text())),
        processing_class=AutoTokenizer.from_pretrained(task.model_dir),
        callbacks=[Clock()],
    )
    trainer.train()
    return {"done": done, "rewards": rewards, "lengths": lengths}


def main() -> None:
    task = TRLTask(**json.loads(Path(sys.argv[1]).read_text()))
    measured = train(task)
    rank = os.environ.get("RANK", "0")
    Path(f"{task.answer}.{rank}").write_text(json.dumps(measured | {"task": asdict(task)}))


if __name__ == "__main__":
    main()
