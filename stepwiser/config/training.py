"""Settings of everything that trains: learner, GRPO, supervised fine-tuning, baselines."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from stepwiser.config.base import Positive, Section


class LearnerConfig(Section):
    """Ray Train workers with DeepSpeed."""

    workers: Positive = Field(1, description="Ray Train workers, one rank each.")
    min_workers: Positive | None = Field(
        None,
        description="Go on with as few while there is no room for all, and grow again later; else "
        "always `workers`.",
    )
    cpus: Positive = Field(1, description="Ray CPUs, and threads, of one worker.")
    gpus: float = Field(0.0, ge=0, description="Ray GPUs of one worker; below 1 it shares one.")
    zero_stage: Literal[2, 3] = Field(2, description="DeepSpeed ZeRO stage.")
    precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="Forward type.")
    max_tokens_per_microbatch: Positive = Field(16384, description="Token budget of one forward.")
    gradient_checkpointing: bool = Field(False, description="Trade compute for memory.")
    max_failures: int = Field(2, ge=-1, description="Worker-group restarts before giving up.")


class SFTConfig(Section):
    """Supervised fine-tuning (METHOD: lr 1e-5, packed to 8192, batch 32)."""

    learning_rate: float = Field(1e-5, gt=0)
    schedule: Literal["constant", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    batch_size: Positive = Field(32, description="Examples of one optimizer step, all ranks.")
    steps: Positive | None = Field(None, description="Optimizer steps; else `epochs`.")
    epochs: Positive = Field(1)
    weight_decay: float = Field(0.0, ge=0)


class TrainConfig(Section):
    """How the judge is trained; all but the first two are settings of GRPO (paper section 3.3)."""

    method: Literal["grpo", "rs_ft", "discriminative"] = Field(
        "grpo",
        description="Generative judge by reinforcement learning, or by fine-tuning on its own right"
        " verdicts (section `rejection`); or the discriminative judge alone.",
    )
    reward: Literal["verdict", "verdict_only", "outcome"] = Field(
        "verdict",
        description="What GRPO rewards: a verdict that equals the label; the same, and -1 for any"
        " word besides it (asked with prompts.verdict); or, without labels, verdicts on all steps"
        " of a solution that together tell whether its final answer is right.",
    )
    steps: Positive = 800
    prompts_per_step: Positive = 1024
    minibatch_prompts: Positive = 256
    group_size: Positive = 4
    max_response_tokens: Positive = 3096
    temperature: float = Field(1.0, gt=0)
    learning_rate: float = Field(1e-6, gt=0)
    schedule: Literal["constant", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.28, gt=0, description="Clip-higher keeps exploration alive.")
    normalize_advantages: bool = Field(True, description="Divide by the group's deviation.")
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    importance_cap: float | None = Field(2.0, description="Truncated engine/learner correction.")
    kl_coefficient: float = Field(
        0.0, ge=0, description="Weight of the KL to the judge's start; the paper has none."
    )
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    max_grad_norm: float = Field(1.0, gt=0)
    staleness: int = Field(
        0,
        ge=0,
        description="Weight versions that a sample may be old when it is trained on. 0: engines "
        "and learner take turns; k: up to k steps are sampled while the learner trains.",
    )
    dynamic_sampling: bool = Field(
        False,
        description="Sample further prompts for groups whose rewards are all the same, until a "
        "step has prompts_per_step others; else only while it has none.",
    )
    max_sampling_rounds: Positive = Field(
        4, description="Rounds of prompts that one step may sample, the first included."
    )
    live: bool = Field(
        False,
        description="Annotate while training goes on, as much as the steps read, in place of the "
        "stages annotate and label.",
    )
    live_ahead: Positive = Field(
        2, description="Steps' worth of labelled prompts that live annotation keeps ready."
    )
    live_reads: Positive = Field(
        8, description="Most readings of one prompt while live annotation goes on."
    )
    checkpoint_every: Positive = Field(
        1, description="Steps that the death of a learner may cost, at most one more."
    )
    evaluate_every: Positive | None = Field(
        None, description="Score held-out labels after every so many steps, beside the training."
    )
    evaluate_processbench: Positive | None = Field(
        None, description="Items of the set of `evaluate` that are scored as well."
    )
    evaluator_engines: int = Field(
        0,
        ge=0,
        description="Engines of the evaluation's own; 0 shares those that sample, and the next "
        "weights wait for it.",
    )
    best_by: Literal["heldout_balanced", "processbench_f1"] = Field(
        "heldout_balanced", description="Score that the best judge is chosen by."
    )
    early_stop_patience: Positive | None = Field(
        None, description="Stop after so many evaluations without a new best; else never."
    )
    keep: Literal["last", "best"] = Field(
        "last", description="Which judge the later stages use; both are exported."
    )
    publish_timeout_s: Positive = 600
    weight_transfer: Literal["auto", "object_store", "cuda_ipc", "nccl"] = Field(
        "auto",
        description="How weights reach the engines: through Ray's object store, by memory of a GPU "
        "that both share, or by a broadcast between GPUs. `auto`: the second "
        "where both have fractions of a GPU, the third where both have whole ones, else the first.",
    )
    weight_bucket_mb: Positive = Field(
        512, description="Weights are gathered and sent in pieces of so many MiB."
    )
    colocated: bool = Field(
        False,
        description="Engines and learner take turns on the same GPUs: engines sleep while the "
        "learner works. Both then need fractions of a GPU (engine.gpus, learner.gpus).",
    )
    logprob_tolerance: float = Field(
        0.05, gt=0, description="Largest mean engine/learner log-prob gap before training stops."
    )

    @model_validator(mode="after")
    def _what_is_chosen_is_evaluated(self) -> TrainConfig:
        asks = self.keep == "best" or self.early_stop_patience is not None
        if asks and self.evaluate_every is None:
            raise ValueError(
                "train.keep=best and train.early_stop_patience go by evaluations, and there are "
                "none: set train.evaluate_every"
            )
        if self.best_by == "processbench_f1" and self.evaluate_processbench is None:
            raise ValueError(
                "train.best_by=processbench_f1 needs items to score: set "
                "train.evaluate_processbench"
            )
        return self


class DiscriminativeConfig(Section):
    """The discriminative baseline: multi-turn `+` / `-` after every chunk."""

    enabled: bool = Field(True, description="Train it beside the judge, whatever train.method is.")
    sft: SFTConfig = SFTConfig()


class RejectionConfig(Section):
    """Rejection-sampling fine-tuning of the generative judge (train.method=rs_ft)."""

    rounds: Positive = Field(2, description="Times to sample and to fine-tune on what was right.")
    prompts: Positive | None = Field(
        None, description="Training prompts sampled in a round, half of each class; all if unset."
    )
    samples: Positive = Field(8, description="Judgements of a prompt.")
    keep_per_prompt: Positive = Field(2, description="Most right judgements kept of a prompt.")
    sft: SFTConfig = SFTConfig()


class AblateConfig(Section):
    """Trainings that `stepwiser ablate` compares."""

    arms: dict[str, dict[str, Any]] = Field(
        {},
        description="Name of each training to what differs from this configuration, as"
        " `section.key: value`; one of them is the full recipe, which usually differs in nothing.",
    )
    reference: str = Field("full", description="Arm that the others are held against.")
    seeds: Positive = Field(3, description="Repetitions, each with labels of its own.")
