"""The configuration of a run: one YAML a scenario, every field described here.

Importable without torch, Ray or vLLM, so that a config can be checked anywhere.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from stepwiser.config.addresses import LocalPlace
from stepwiser.config.base import (
    AnswerChecker,
    Fraction,
    Positive,
    Section,
    require_at_least,
    require_at_most,
)
from stepwiser.config.data import DataConfig
from stepwiser.config.evaluation import EvaluateConfig
from stepwiser.config.prompts import PromptConfig
from stepwiser.config.shard import Shard
from stepwiser.config.training import (
    AblateConfig,
    DiscriminativeConfig,
    LearnerConfig,
    RejectionConfig,
    SFTConfig,
    TrainConfig,
)


class EngineConfig(Section):
    """vLLM engines that generate: how many, how big, with what."""

    count: Positive = Field(1, description="Engines of a pool.")
    cpus: float = Field(1.0, gt=0, description="Ray CPUs of one engine.")
    gpus: float = Field(0.0, ge=0, description="Ray GPUs of one engine; below 1 they share one.")
    dtype: Literal["float32", "bfloat16", "auto"] = Field("auto", description="Weights' type.")
    max_model_len: Positive = Field(4096, description="Tokens of prompt and response together.")
    max_num_seqs: Positive = Field(256, description="Sequences decoded at once.")
    kv_cache_mb: Positive | None = Field(
        None, description="KV cache in MiB; needed on CPU, where vLLM else takes most of the RAM."
    )
    gpu_memory_utilization: Fraction | None = Field(
        None, description="Share of the GPU's memory for one engine."
    )
    tensor_parallel_size: Positive = Field(1, description="GPUs that hold one engine.")
    enforce_eager: bool = Field(False, description="Do not capture CUDA graphs.")
    multiprocess: bool = Field(
        True, description="Run the engine core in its own process (in-process on a laptop)."
    )
    start_timeout_s: Positive = Field(900, description="Give up on an engine after so long.")


class SegmentConfig(Section):
    """Chunks-of-thought: self-segmentation and the SFT that teaches it (paper section 3.1)."""

    problems: Positive = Field(20000, description="Prompts asked.")
    responses: Positive = Field(16, description="Base responses of one prompt.")
    keep_per_problem: Positive = Field(4, description="Right responses kept of one prompt.")
    segmenter: Literal["rule", "engine", "openai"] = Field(
        "engine", description="Rule-based teacher, prompted vLLM engine, or OpenAI-compatible URL."
    )
    segmenter_model: LocalPlace | None = Field(
        None, description="Model directory or name of the segmenter; the policy itself if unset."
    )
    segmenter_url: str | None = Field(None, description="Base URL for `openai`.")
    segmentations: Positive = Field(
        8, description="Tries to segment one response; the exact ones count."
    )
    evaluation_problems: Positive = Field(200, description="Problems of the before/after table.")
    max_tokens: Positive = Field(8192)
    sft: SFTConfig = SFTConfig()


class RuleConfig(Section):
    """A label rule with its parameters (paper section 3.2)."""

    rule: Literal["abs_q", "rel_effective", "rel_ratio"] = "rel_effective"
    alpha: float = Field(0.8, gt=0, description="Weight of the value's change (Rel-Effective).")
    gamma: float = Field(0.7, gt=0, description="Threshold of the value's ratio (Rel-Ratio).")
    best_of: Positive = Field(4, description="n of the best-of-n policy (Rel-Effective).")
    minimum_previous_value: Fraction = Field(
        0.0, description="Skip chunks that follow a prefix valued below this."
    )


class AnnotateConfig(Section):
    """Monte-Carlo values of every chunk (paper section 3.2)."""

    source: LocalPlace | None = Field(
        None,
        description="File of trajectories to value instead of sampled ones: ProcessBench's format "
        "(problem, steps), whole solutions (problem, answer, solution), or labelled steps of "
        "PRM800K, Math-Shepherd and their like.",
    )
    responses: Positive = Field(16, description="Responses per problem for the difficulty filter.")
    trajectories_per_problem: Positive = Field(
        16, description="Responses of a kept problem whose chunks are valued."
    )
    rollouts: Positive = Field(16, description="M: completions of every chunk prefix.")
    stopping: Literal["fixed", "exact", "sequential"] = Field(
        "fixed",
        description="When a prefix has had enough: after all M; when no label can change any more; "
        "or when one would change with probability at most `error_bound`.",
    )
    wave: Positive = Field(
        4, description="Most completions asked for before looking again (exact, sequential)."
    )
    error_bound: float = Field(
        0.05, gt=0, lt=0.5, description="Largest probability of a wrong label (sequential)."
    )
    max_rollouts: Positive | None = Field(
        None,
        description="Completions that a prefix may get, and that its label is about (sequential); "
        "else `rollouts`.",
    )
    rules: tuple[RuleConfig, ...] = Field(
        (),
        description="Labels that will be asked for (exact, sequential); else that of section "
        "`label`. Each further rule costs rollouts, Rel-Ratio most of all.",
    )
    temperature: float = Field(1.0, gt=0)
    max_tokens: Positive = Field(8192)
    max_chunks: Positive = Field(64, description="Longer responses are dropped and counted.")
    stop_below: Fraction = Field(
        0.0, description="Chunks after one valued below this are not annotated; 0 annotates all."
    )
    min_engines: Positive | None = Field(
        None,
        description="Engines of this stage before it starts; it has all GPUs to itself, unless "
        "it is live (train.live). Else engine.count.",
    )
    max_engines: Positive | None = Field(
        None,
        description="Engines that may join it as nodes come, also those an autoscaler adds; else "
        "as many as it starts with.",
    )
    problems_per_unit: Positive = Field(8, description="Problems of one unit of work.")

    @model_validator(mode="after")
    def _engines_fit(self) -> AnnotateConfig:
        fewest, most = self.min_engines, self.max_engines
        if fewest is not None and most is not None:
            require_at_least("annotate.max_engines", most, "annotate.min_engines", fewest)
        return self

    @model_validator(mode="after")
    def _waves_fit(self) -> AnnotateConfig:
        planned = ("annotate.rollouts", self.rollouts)
        if self.stopping != "fixed":
            require_at_most("annotate.wave", self.wave, *planned)
        if self.max_rollouts is not None and self.stopping != "sequential":
            raise ValueError(
                f"annotate.max_rollouts={self.max_rollouts} needs annotate.stopping=sequential, "
                f"not {self.stopping}: leave it out and set annotate.rollouts"
            )
        if self.max_rollouts is not None:
            require_at_least("annotate.max_rollouts", self.max_rollouts, *planned)
        return self


class LabelConfig(RuleConfig):
    """From values to balanced judge prompts (paper sections 3.2 and 3.3)."""

    max_prompt_tokens: Positive = Field(3096, description="Longer judge prompts are dropped.")
    balance: bool = Field(True, description="Downsample the majority class to one half.")
    heldout_share: Fraction = Field(0.05, description="Share of problems kept for validation.")
    chunks_per_step: Positive = Field(
        1, description="Chunks judged as one step; more than 1 for steps that ignore the chunks."
    )


class SolveConfig(Section):
    """Chunk-reset search beside plain sampling and majority vote (paper section 5.1)."""

    problems: Positive = 500
    samples_per_chunk: Positive = 5
    max_chunks: Positive = 64
    max_tokens: Positive = 8192
    temperature: float = Field(1.0, ge=0)
    judge_temperature: float = Field(1.0, ge=0)
    plain_samples: Positive = Field(8, description="Samples of a problem for pass@1 and votes.")
    concurrent_problems: Positive = 128


class SelectConfig(Section):
    """Choosing training data by mean chunk score (paper section 5.2)."""

    problems: Positive = 1000
    responses: Positive = 8
    votes: Positive = Field(1, description="Judgments of a chunk whose mean is its score.")
    judge_temperature: float = Field(1.0, ge=0)


class FinetuneConfig(Section):
    """SFT of the policy on each pick, and greedy or sampled evaluation."""

    sft: SFTConfig = SFTConfig()
    evaluation_problems: Positive = 500
    evaluation_samples: Positive = Field(4, description="Samples of a problem.")
    evaluation_temperature: float = Field(1.0, ge=0)


class ServeConfig(Section):
    """The judge over HTTP."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    replicas: Positive = 1
    votes: Positive = 1
    max_ongoing_requests: Positive = 64


class ClusterConfig(Section):
    """What the run expects of Ray."""

    address: str | None = Field(None, description="`auto` joins a running cluster; else local.")
    cpus: float | None = Field(None, description="Logical CPUs of a local Ray; else the machine's.")
    expected_gpus: int = Field(0, ge=0, description="GPUs that `--plan` holds the plan against.")
    wait_for_nodes_s: int = Field(
        0, ge=0, description="How long the autoscaler may take to bring what the plan needs."
    )
    object_store_mb: Positive = Field(512, description="Object store of a local Ray.")
    shard: str = Field(
        "0/1", description="i/n: annotate every n-th unit, from the i-th (`--shard`)."
    )

    @field_validator("shard")
    @classmethod
    def _shard_exists(cls, text: str) -> str:
        return str(Shard.parse(text))


class RunConfig(Section):
    """A whole run."""

    name: str = "embedded"
    seed: int = 0
    run_dir: LocalPlace = Field(
        "runs/embedded", description="Folder of the run; on a cluster one that every node sees."
    )
    policy_model: LocalPlace = Field(
        "embedded", description="Hugging Face directory or name; `embedded` is the packaged one."
    )
    judge_model: LocalPlace | None = Field(
        None, description="Where the judge starts; the chunk-tuned policy if unset (as the paper)."
    )
    tracker: Literal["wandb", "none"] = Field(
        "wandb",
        description="Where curves go while a stage runs: Weights & Biases (offline without a key), "
        "or nowhere besides the run directory.",
    )
    answer_checker: AnswerChecker = Field(
        "math_verify",
        description="`exact` (same text), `math_verify`, or an own verifier: `module:function` or "
        "an http(s) address.",
    )
    check_timeout_s: float = Field(5.0, gt=0, description="Seconds of one check, at the longest.")
    judge_max_tokens: Positive = Field(3096, description="Longest analysis and verdict.")
    prompts: PromptConfig = PromptConfig()
    data: DataConfig = DataConfig()
    evaluation_data: DataConfig = DataConfig(seed=1_000_003)
    cluster: ClusterConfig = ClusterConfig()
    engine: EngineConfig = EngineConfig()
    learner: LearnerConfig = LearnerConfig()
    segment: SegmentConfig = SegmentConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    label: LabelConfig = LabelConfig()
    train: TrainConfig = TrainConfig()
    discriminative: DiscriminativeConfig = DiscriminativeConfig()
    rejection: RejectionConfig = RejectionConfig()
    ablate: AblateConfig = AblateConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    solve: SolveConfig = SolveConfig()
    select: SelectConfig = SelectConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    serve: ServeConfig = ServeConfig()

    @model_validator(mode="after")
    def _minibatches_divide(self) -> RunConfig:
        part, whole = self.train.minibatch_prompts, self.train.prompts_per_step
        require_at_most("train.minibatch_prompts", part, "train.prompts_per_step", whole)
        return self

    @model_validator(mode="after")
    def _methods_fit(self) -> RunConfig:
        train, label = self.train, self.label
        if train.reward != "verdict" and train.method != "grpo":
            raise ValueError(
                f"train.reward={train.reward} is a reward of train.method=grpo, not of "
                f"{train.method}: leave it out"
            )
        live = {
            f"train.method={train.method}": train.method != "grpo",
            "train.reward=outcome": train.reward == "outcome",
            "label.balance=false": not label.balance,
            f"label.chunks_per_step={label.chunks_per_step}": label.chunks_per_step > 1,
        }
        if train.live and (clash := [name for name, holds in live.items() if holds]):
            raise ValueError(
                f"train.live=true cannot be had with {' and '.join(clash)}: run the stages "
                "annotate and label first and set train.live=false"
            )
        if label.chunks_per_step > 1 and self.annotate.stopping != "fixed":
            raise ValueError(
                f"label.chunks_per_step={label.chunks_per_step} needs values that are whole, but "
                f"annotate.stopping={self.annotate.stopping} ends rollouts for the labels of single"
                " chunks: set annotate.stopping=fixed"
            )
        return self

    @model_validator(mode="after")
    def _workers_fit(self) -> RunConfig:
        fewest, most = self.learner.min_workers, self.learner.workers
        if fewest is not None:
            require_at_most("learner.min_workers", fewest, "learner.workers", most)
        return self

    @model_validator(mode="after")
    def _gpus_are_shared_where_they_must_be(self) -> RunConfig:
        engine, learner, train = self.engine.gpus, self.learner.gpus, self.train
        if train.colocated and (engine >= 1 or learner >= 1):
            raise ValueError(
                f"train.colocated needs fractions of a GPU, not engine.gpus={engine:g} and "
                f"learner.gpus={learner:g}: set two that add up to 1, the larger one above 0.5"
            )
        if train.colocated and train.staleness:
            raise ValueError(
                f"train.staleness={train.staleness} samples while the learner works, but with "
                "train.colocated the engines sleep then: set train.staleness=0, or leave out "
                "train.colocated"
            )
        if train.weight_transfer == "nccl" and (0 < engine < 1 or 0 < learner < 1):
            raise ValueError(
                f"train.weight_transfer=nccl needs a GPU for each process, not engine.gpus="
                f"{engine:g} and learner.gpus={learner:g}: set auto, or whole GPUs"
            )
        return self

    @property
    def judge_prompts(self) -> PromptConfig:
        """The prompts as the generative judge gets them, in training and in use."""
        if self.train.reward != "verdict_only":
            return self.prompts
        return self.prompts.model_copy(update={"judge": self.prompts.verdict})


OPERATIONAL_SECTIONS = frozenset({"cluster", "engine", "learner", "serve", "run_dir", "ablate"})
"""Where and how fast a run happens, not what it computes: may change between two starts."""

OPERATIONAL_KEYS = frozenset(
    {
        "tracker",
        "annotate.min_engines",
        "annotate.max_engines",
        "train.weight_transfer",
        "train.weight_bucket_mb",
        "train.colocated",
        "train.evaluator_engines",
        # Rows that cannot be read end a start without them: what has run read every one.
        "data.skip_bad_rows",
        "evaluation_data.skip_bad_rows",
        "evaluate.skip_bad_rows",
    }
)
"""The same of single settings."""
