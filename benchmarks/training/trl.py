"""A GRPO step of ours beside one of TRL's `GRPOTrainer`, on a CPU.

Ours is the stage `train` as it is: two vLLM engines, the collector, two DeepSpeed ranks, one thread
each, on the packaged base model. TRL gets the very prompts of every step in the same order, the
same group size, temperature, response limit, learning rate, clips, reward, number type and number
of updates (`benchmarks.training.trl_arm` says how its settings come to that), and both cores: as
one process of two threads or two of one, with micro-batches of several sizes, and with
transformers' padded `generate` or its continuous batching. Which of these is quickest is measured
first, and that one is compared. TRL's own vLLM mode is not among them: TRL 1.16 wants vLLM up to
0.31 and a GPU for it.

Seconds of a step are those between the end of the first and the end of the last one. Samples are
the completions that a step samples and trains on. Two differences are left: groups that all earned
the same are sampled by both, and trained on by TRL alone, with an advantage of 0; and our ratio is
corrected for the gap between engine and learner.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

from actors.learner.grpo_loop import KIND
from actors.rollout.prompt_source import FinishedPrompts
from benchmarks.command import CONFIG
from benchmarks.training.trl_arm import TRLTask
from pipelines.stages.runner import run_stages
from pipelines.stages.train import JUDGE
from stepwiser.config import RunConfig, load_config
from stepwiser.data.records import JudgePrompt
from stepwiser.prompting.hub.folders import model_folder
from stepwiser.run.metrics_file import read_metrics
from stepwiser.run.store import RunStore
from stepwiser.run.tables import load_judge_prompts
from stepwiser.tasks.transcripts import sample_judge_case

TRAIN_ALONE = (
    "discriminative.enabled=false",
    "train.schedule=constant",
    "train.warmup_steps=0",
    "train.evaluate_every=null",
)
PROMPTS = 2048
"""Labelled prompts that are drawn for a run directory; the oracle labels them."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    repeats: int
    """Each with a seed of its own."""
    steps: int
    prompts_per_step: int
    calibration_steps: int
    """Of every setting of TRL; 0 takes the first."""


FULL = Size(repeats=3, steps=30, prompts_per_step=128, calibration_steps=3)
QUICK = Size(repeats=1, steps=4, prompts_per_step=32, calibration_steps=0)


@dataclass(frozen=True)
class Setting:
    """How TRL may use two cores."""

    processes: int
    micro_batch: int
    """Completions of one forward pass of a process; those of an update if there are fewer."""
    continuous_batching: bool

    def __str__(self) -> str:
        kind = "continuous batching" if self.continuous_batching else "generate"
        return f"{self.processes} × {self.micro_batch}, {kind}"


SETTINGS = (
    Setting(1, 128, False),
    Setting(1, 512, False),
    Setting(1, 32, False),
    Setting(2, 128, False),
    Setting(1, 128, True),
)


@dataclass(frozen=True)
class Run:
    """What one training took and earned."""

    done: tuple[float, ...]
    """Seconds, of any one clock, at which each step was done."""
    rewards: tuple[float, ...]
    """Mean of each step."""

    @property
    def seconds(self) -> float:
        """Of one step in the steady state: the first one warms up."""
        return (self.done[-1] - self.done[0]) / (len(self.done) - 1)


def oracle_prompts(count: int, seed: int) -> list[JudgePrompt]:
    """Judge prompts with the label of the oracle, half of them Negative on average."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        case = sample_judge_case(rng)
        name = f"oracle-{seed}-{number:06}"
        value = float(case.right)
        rows.append(
            JudgePrompt(
                prompt_id=name,
                trajectory_id=name,
                problem_id=name,
                question=case.problem.question,
                history=list(case.history),
                chunk=case.chunk,
                chunk_index=len(case.history),
                label=case.right,
                rule="oracle",
                value=value,
                previous_value=1.0,
                trials=1,
                split="train",
            )
        )
    return rows


def prepare(folder: Path, prompts: Sequence[JudgePrompt], overrides: Sequence[str]) -> RunConfig:
    """A new run directory with these prompts, as `label` would leave them, and its config."""
    shutil.rmtree(folder, ignore_errors=True)
    config = load_config(CONFIG, [f"run_dir={folder}", *TRAIN_ALONE, *overrides])
    RunStore(folder).write_table("judge_prompts", "oracle", JudgePrompt.to_table(list(prompts)))
    return config


def conversations(config: RunConfig) -> list[dict[str, Any]]:
    """The prompts that our steps read, in order, as TRL takes them: messages and the label."""
    train = config.train
    rows = load_judge_prompts(RunStore(config.run_dir), "train")
    source = FinishedPrompts(rows, train.prompts_per_step, config.seed, config.label.balance)

    async def all_steps() -> list[JudgePrompt]:
        return [p for step in range(train.steps) for p in await source.sample(step, 0)]

    texts = config.judge_prompts
    asked = []
    for prompt in asyncio.run(all_steps()):
        history = texts.history_separator.join(prompt.history)
        content = texts.judge.format(
            problem=prompt.question,
            history=history if prompt.history else texts.empty_history,
            chunk=prompt.chunk,
        )
        message = {"role": "user", "content": content}
        asked.append({"prompt": [message], "label": prompt.label})
    return asked


def trl_task(config: RunConfig, setting: Setting, folder: Path) -> TRLTask:
    """TRL's part of the comparison with a run of ours."""
    train = config.train
    updates = train.prompts_per_step // train.minibatch_prompts
    of_an_update = train.minibatch_prompts * train.group_size // setting.processes
    return TRLTask(
        model_dir=str(model_folder(config.judge_model or config.policy_model)),
        prompts=str(folder / "prompts.json"),
        answer=str(folder / "answer"),
        seed=config.seed,
        steps=train.steps,
        prompts_per_step=train.prompts_per_step,
        group_size=train.group_size,
        updates=updates,
        micro_batch=min(setting.micro_batch, of_an_update),
        processes=setting.processes,
        threads=max(1, 2 // setting.processes),
        continuous_batching=setting.continuous_batching,
        max_response_tokens=min(train.max_response_tokens, config.judge_max_tokens),
        temperature=train.temperature,
        learning_rate=train.learning_rate,
        clip_low=train.clip_low,
        clip_high=train.clip_high,
        max_grad_norm=train.max_grad_norm,
        weight_decay=train.weight_decay,
    )


def run_trl(task: TRLTask, folder: Path) -> Run:
    """Train with TRL in processes of its own. Raises RuntimeError with what they last said."""
    file = folder / "task.json"
    file.write_text(json.dumps(asdict(task)))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    several = [*launcher, str(task.processes)] if task.processes > 1 else []
    finished = subprocess.run(
        [sys.executable, *several, "-m", "benchmarks.training.trl_arm", str(file)],
        env=os.environ
        | {
            "OMP_NUM_THREADS": str(task.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(CONFIG.parent.parent),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise RuntimeError(f"TRL ended with {finished.returncode}: {finished.stderr[-2000:]}")
    answers = [json.loads(Path(f"{task.answer}.{i}").read_text()) for i in range(task.processes)]
    rewards = [statistics.mean(step) for step in zip(*(a["rewards"] for a in answers), strict=True)]
    return Run(tuple(answers[0]["done"]), tuple(rewards))


def run_ours(config: RunConfig) -> tuple[Run, list[dict[str, Any]]]:
    """Train with the stage itself; also the lines of its curve."""
    run_stages(config, ("train",))
    rows = read_metrics(str(RunStore(config.run_dir).curve), KIND, JUDGE)
    return Run(tuple(r["time"] for r in rows), tuple(r["reward"] for r in rows)), rows


def quickest(config: RunConfig, folder: Path, steps: int) -> tuple[Setting, dict[str, float]]:
    """TRL's best setting, and the seconds a step of each that was tried."""
    short = config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})
    (folder / "prompts.json").write_text(json.dumps(conversations(short)))
    tried = {}
    for setting in SETTINGS:
        tried[setting] = run_trl(trl_task(short, setting, folder), folder).seconds
    best = min(tried, key=lambda setting: tried[setting])
    return best, {str(setting): seconds for setting, seconds in tried.items()}


def final_reward(rewards: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean reward of the last fifth of the steps over runs, and its standard error.

    Of the steps, whose prompts differ, or of the runs, whichever is larger.
    """
    last = [list(run[-max(1, len(run) // 5) :]) for run in rewards]
    means = [statistics.mean(run) for run in last]
    steps = [reward for run in last for reward in run]
    errors = [
        statistics.stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
        for values in (steps, means)
    ]
    return statistics.mean(means), max(errors)


def summarize(ours: Sequence[Run], theirs: Sequence[Run], samples: int) -> dict[str, Any]:
    """Figures of the repeats, each a pair of runs of so many samples a step."""
    ratios = [trl.seconds / own.seconds for own, trl in zip(ours, theirs, strict=True)]
    reward, error = final_reward([run.rewards for run in ours])
    trl_reward, trl_error = final_reward([run.rewards for run in theirs])
    return {
        "samples_vs_trl": statistics.median(ratios),
        "samples_vs_trl_least": min(ratios),
        "samples_vs_trl_most": max(ratios),
        "samples_per_s": statistics.median(samples / run.seconds for run in ours),
        "samples_per_s_trl": statistics.median(samples / run.seconds for run in theirs),
        "reward": reward,
        "reward_se": error,
        "reward_trl": trl_reward,
        "reward_trl_se": trl_error,
    }


def seconds_of_a_step(curves: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
    """Median of each part of a step, the first one of each run left out.

    `seconds_collect` runs beside the others: fetching waits for it.
    """
    rows = [row for curve in curves for row in curve[1:]]
    names = sorted(name for name in rows[0] if name.startswith("seconds_"))
    return {name: statistics.median(row[name] for row in rows) for name in names}


def measure_trl(out: Path, size: Size) -> dict[str, Any]:
    """Repeats with both arms, one after the other, the first one in turn.

    Returns the figures of `summarize`, `logprob_gap` (the largest mean gap of any step of any
    repeat), `seconds` of our steps by part, and `tried`, seconds a step of TRL's settings.
    """
    folder = out / "trl"
    folder.mkdir(parents=True, exist_ok=True)
    prompts = oracle_prompts(PROMPTS, seed=1)
    sizes = (
        f"train.steps={size.steps}",
        f"train.prompts_per_step={size.prompts_per_step}",
        f"train.minibatch_prompts={size.prompts_per_step // 2}",
        f"train.checkpoint_every={size.steps}",
    )
    setting = SETTINGS[0]
    tried: dict[str, float] = {}
    ours: list[Run] = []
    theirs: list[Run] = []
    curves: list[list[dict[str, Any]]] = []
    for repeat in range(size.repeats):
        config = prepare(folder / f"ours-{repeat}", prompts, [f"seed={repeat}", *sizes])
        if not repeat and size.calibration_steps:
            setting, tried = quickest(config, folder, size.calibration_steps)
        (folder / "prompts.json").write_text(json.dumps(conversations(config)))
        task = replace(trl_task(config, setting, folder), seed=repeat)
        if repeat % 2:
            theirs.append(run_trl(task, folder))
        run, rows = run_ours(config)
        ours.append(run)
        curves.append(rows)
        if not repeat % 2:
            theirs.append(run_trl(task, folder))
    return {
        **summarize(ours, theirs, size.prompts_per_step * config.train.group_size),
        "logprob_gap": max(row["logprob_gap"] for rows in curves for row in rows),
        "seconds": seconds_of_a_step(curves),
        "setting": str(setting),
        "tried": tried,
    }
