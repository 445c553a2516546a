"""Settings of everything that trains: learner, GRPO, fine-tuning and what it picks, baselines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stepwiser.config.addresses import LocalPlace
from stepwiser.config.base import (
    Gpus,
    Judgements,
    Mebibytes,
    Number,
    Positive,
    Problems,
    Prompts,
    Responses,
    Seconds,
    Section,
    Steps,
    Tokens,
    Unit,
)

Ranks = Annotated[Positive, Unit("ranks")]
Epochs = Annotated[Positive, Unit("passes over the data")]

MAX_ADAPTER_RANK = 512
"""The highest that vLLM has room for."""


class LoraConfig(Section):
    """Low-rank adapters in place of full training, of every model that a run trains."""

    rank: Annotated[int, Unit("rank of the adapters' matrices")] = Field(
        0,
        ge=0,
        description="0 trains all weights; above it only adapters of this rank are trained.",
        examples=[16],
    )
    alpha: Number = Field(
        32.0,
        gt=0,
        description="An adapter's product counts alpha / rank times.",
        examples=[16],
    )
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Layers with adapters: all linear ones but the output layer, or those whose "
        "names end so.",
        examples=["[q_proj, v_proj]"],
    )


class LearnerConfig(Section):
    """Ray Train workers with DeepSpeed."""

    workers: Ranks = Field(1, description="Ray Train workers, one rank each.")
    min_workers: Ranks | None = Field(
        None,
        description="Go on with as few while there is no room for all, and grow again later; else "
        "always `workers`.",
        examples=[1],
    )
    cpus: Annotated[Positive, Unit("CPUs, as Ray counts them")] | None = Field(
        None,
        description="Ray CPUs, and threads, of one worker. Unset: one Ray CPU, and without a GPU "
        "an even share of the machine's cores as threads (OMP_NUM_THREADS, where that is set), "
        "unless engines sample while it trains.",
        examples=[4],
    )
    gpus: Gpus = Field(0.0, description="Ray GPUs of one worker; below 1 it shares one.")
    spot: bool = Field(
        False,
        description="Workers may be on nodes that can be taken back at any moment (Ray's label "
        "`ray.io/market-type: spot`); else such nodes run engines alone.",
        examples=[True],
    )
    zero_stage: Literal[2, 3] = Field(2, description="DeepSpeed ZeRO stage.")
    precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="Forward type.")
    max_tokens_per_microbatch: Tokens = Field(16384, description="Token budget of one forward.")
    gradient_checkpointing: bool = Field(False, description="Trade compute for memory.")
    max_failures: Annotated[int, Unit("restarts")] = Field(
        2,
        ge=-1,
        description="Restarts of the workers before giving up; -1: never give up.",
        examples=[10],
    )
    lora: LoraConfig = LoraConfig()

    @property
    def ray_cpus(self) -> int:
        """What Ray sets apart for one worker."""
        return 1 if self.cpus is None else self.cpus


class SFTConfig(Section):
    """Supervised fine-tuning (METHOD: lr 1e-5, packed to 8192, batch 32)."""

    learning_rate: Number = Field(1e-5, gt=0, description="Highest learning rate of AdamW.")
    schedule: Literal["constant", "linear"] = Field(
        "constant", description="After warm-up: kept, or led to 0 by the last step."
    )
    warmup_steps: Annotated[int, Unit("optimizer steps")] = Field(
        0, ge=0, description="Steps over which the learning rate rises from 0."
    )
    batch_size: Annotated[Positive, Unit("examples")] = Field(
        32, description="Examples of one optimizer step, all ranks.", examples=[16]
    )
    steps: Annotated[Positive, Unit("optimizer steps")] | None = Field(
        None, description="Optimizer steps; else `epochs`.", examples=[40]
    )
    epochs: Epochs = Field(1, description="Passes over the examples, where `steps` is unset.")
    weight_decay: Number = Field(0.0, ge=0, description="Weight decay of AdamW.", examples=[0.01])


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
    warm_start: bool = Field(
        False,
        description="Before GRPO, fine-tune the judge on its own right verdicts (section "
        "`rejection`): for models that rarely name a verdict, whose groups have no signal.",
    )
    steps: Steps = Field(800, description="Steps of GRPO: each samples, then learns.")
    prompts_per_step: Prompts = Field(1024, description="Prompts that one step samples for.")
    minibatch_prompts: Prompts = Field(
        256, description="Prompts of one optimizer step; a step makes as many as it has such."
    )
    group_size: Annotated[Positive, Unit("judgements of a prompt")] = Field(
        4, description="Judgements sampled for a prompt and held against one another."
    )
    max_response_tokens: Tokens = Field(
        3096, description="Longest sampled judgement; `judge_max_tokens` bounds it too."
    )
    temperature: Number = Field(
        1.0, gt=0, description="Sampling temperature of the judge.", examples=[0.7]
    )
    learning_rate: Number = Field(1e-6, gt=0, description="Highest learning rate of AdamW.")
    schedule: Literal["constant", "linear"] = Field(
        "constant", description="After warm-up: kept, or led to 0 by the last step."
    )
    warmup_steps: Annotated[int, Unit("training steps")] = Field(
        0, ge=0, description="Steps over which the learning rate rises from 0."
    )
    weight_decay: Number = Field(0.0, ge=0, description="Weight decay of AdamW.", examples=[0.01])
    adapter: LocalPlace | None = Field(
        None,
        description="Folder of a PEFT adapter that GRPO goes on with, beside the judge's start that"
        " it was trained on; a new one if unset. Needs `learner.lora.rank`, its own.",
        examples=["train.adapter=models/warm-start/adapter learner.lora.rank=16"],
    )
    clip_low: Number = Field(
        0.2, gt=0, description="How far below 1 a ratio of probabilities may count.", examples=[0.1]
    )
    clip_high: Number = Field(
        0.28,
        gt=0,
        description="How far above 1 it may; more than `clip_low` (clip-higher) keeps exploration "
        "alive.",
        examples=[0.2],
    )
    normalize_advantages: bool = Field(
        True, description="Divide advantages by the deviation of their group's rewards."
    )
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = Field(
        "token_mean",
        description="How losses of tokens become one: their mean over the mini-batch; the mean of "
        "each answer's mean; or their sum over the longest answer that is allowed.",
    )
    importance_cap: Number | None = Field(
        2.0,
        description="Largest weight that corrects for engines having sampled with older weights or "
        "other arithmetic than the learner's; null corrects without a bound.",
        examples=[5],
    )
    kl_coefficient: Number = Field(
        0.0,
        ge=0,
        description="Weight of the KL to the judge's start; the paper has none.",
        examples=[0.001],
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k3", description="Estimator of that KL: unbiased, squared, or unbiased and positive."
    )
    max_grad_norm: Number = Field(
        1.0,
        gt=0,
        description="Norm that gradients of one optimizer step are cut to.",
        examples=[0.5],
    )
    staleness: Annotated[int, Unit("weight versions")] = Field(
        0,
        ge=0,
        description="Weight versions that a sample may be old when it is trained on. 0: engines "
        "and learner take turns; k: up to k steps are sampled while the learner trains.",
        examples=[1],
    )
    dynamic_sampling: bool = Field(
        False,
        description="Sample further prompts for groups whose rewards are all the same, until a "
        "step has prompts_per_step others; else only while it has none.",
    )
    max_sampling_rounds: Annotated[Positive, Unit("rounds")] = Field(
        4,
        description="Rounds of prompts that one step may sample, the first included.",
        examples=[8],
    )
    live: bool = Field(
        False,
        description="Annotate while training goes on, as much as the steps read, in place of the "
        "stages annotate and label.",
    )
    live_ahead: Steps = Field(
        2,
        description="Steps' worth of labelled prompts that live annotation keeps ready.",
        examples=[4],
    )
    live_reads: Annotated[Positive, Unit("readings of a prompt")] = Field(
        8, description="Most readings of one prompt while live annotation goes on.", examples=[4]
    )
    checkpoint_every: Steps = Field(
        1, description="Steps that the death of a learner may cost, at most one more."
    )
    evaluate_every: Steps | None = Field(
        None, description="Score held-out labels after every so many steps, beside the training."
    )
    evaluate_processbench: Annotated[Positive, Unit("items")] | None = Field(
        None, description="Items of the set of `evaluate` that are scored as well.", examples=[50]
    )
    evaluator_engines: Annotated[int, Unit("engines")] = Field(
        0,
        ge=0,
        description="Engines of the evaluation's own; 0 shares those that sample, and the next "
        "weights wait for it.",
        examples=[1],
    )
    best_by: Literal["heldout_balanced", "processbench_f1"] = Field(
        "heldout_balanced",
        description="Score that the best judge is chosen by.",
        examples=["train.best_by=processbench_f1 train.evaluate_processbench=50"],
    )
    early_stop_patience: Annotated[Positive, Unit("evaluations")] | None = Field(
        None,
        description="Stop after so many evaluations without a new best; else never.",
        examples=[3],
    )
    keep: Literal["last", "best"] = Field(
        "last", description="Which judge the later stages use; both are exported."
    )
    publish_timeout_s: Seconds = Field(
        600, description="Longest that one version of the weights may take to reach the engines."
    )
    weight_transfer: Literal["auto", "object_store", "cuda_ipc", "nccl"] = Field(
        "auto",
        description="How weights reach the engines: through Ray's object store, by memory of a GPU "
        "that both share, or by a broadcast between GPUs. `auto`: the second "
        "where both have fractions of a GPU, the third where both have whole ones, else the first.",
    )
    weight_bucket_mb: Mebibytes = Field(
        512, description="Weights are gathered and sent in pieces of so many MiB.", examples=[256]
    )
    colocated: bool = Field(
        False,
        description="Engines and learner take turns on the same GPUs: engines sleep while the "
        "learner works. Both then need fractions of a GPU (engine.gpus, learner.gpus).",
    )
    logprob_tolerance: Annotated[float, Unit("nats a token")] = Field(
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
    """Rejection-sampling fine-tuning of the generative judge: train.method=rs_ft, or before GRPO
    (train.warm_start)."""

    rounds: Annotated[Positive, Unit("rounds")] = Field(
        2, description="Times to sample and to fine-tune on what was right.", examples=[3]
    )
    prompts: Prompts | None = Field(
        None, description="Training prompts sampled in a round, half of each class; all if unset."
    )
    samples: Annotated[Positive, Unit("judgements of a prompt")] = Field(
        8, description="Judgements sampled of a prompt in a round.", examples=[16]
    )
    keep_per_prompt: Annotated[Positive, Unit("judgements of a prompt")] = Field(
        2, description="Most right judgements kept of a prompt.", examples=[4]
    )
    sft: SFTConfig = SFTConfig()


class SelectConfig(Section):
    """Choosing training data by mean chunk score (paper section 5.2)."""

    problems: Problems = Field(
        1000, description="Problems to pick answers for; those after `data.limit`."
    )
    responses: Responses = Field(8, description="Answers of a problem to pick from.")
    votes: Judgements = Field(
        1, description="Judgements of a chunk whose mean is its score.", examples=[4]
    )
    judge_temperature: Number = Field(
        1.0, ge=0, description="Sampling temperature of the judge.", examples=[0.5]
    )


class FinetuneConfig(Section):
    """SFT of the policy on each pick, and greedy or sampled evaluation."""

    sft: SFTConfig = SFTConfig()
    evaluation_problems: Problems = Field(
        500, description="Problems of `evaluation_data` that the tuned models answer."
    )
    evaluation_samples: Responses = Field(
        4, description="Samples of a problem, whose mean is its accuracy."
    )
    evaluation_temperature: Number = Field(
        1.0,
        ge=0,
        description="Sampling temperature of those; 0, with one sample, is greedy.",
        examples=["finetune.evaluation_temperature=0 finetune.evaluation_samples=1"],
    )


class AblateConfig(Section):
    """Trainings that `stepwiser ablate` compares."""

    arms: dict[str, dict[str, Any]] = Field(
        {},
        description="Name of each training to what differs from this configuration, as"
        " `section.key: value`; one of them is the full recipe, which usually differs in nothing.",
    )
    reference: str = Field(
        "full", description="Arm that the others are held against.", examples=["abs-q"]
    )
    seeds: Annotated[Positive, Unit("seeds")] = Field(
        3, description="Repetitions, each with labels of its own.", examples=[5]
    )
