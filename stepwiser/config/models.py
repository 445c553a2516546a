"""The configuration of a run: one YAML a scenario, every field described here.

Importable without torch, Ray or vLLM, so that a config can be checked anywhere.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from stepwiser.config.addresses import LocalPlace
from stepwiser.config.annotation import AnnotateConfig, LabelConfig, Shard
from stepwiser.config.base import (
    AnswerChecker,
    Chunks,
    Cpus,
    Engines,
    Fraction,
    Gpus,
    Mebibytes,
    Number,
    Positive,
    Problems,
    Responses,
    Seconds,
    Section,
    Seed,
    Tokens,
    Unit,
    require_at_most,
)
from stepwiser.config.data import DataConfig
from stepwiser.config.evaluation import EvaluateConfig
from stepwiser.config.prompts import PromptConfig
from stepwiser.config.serving import ServeConfig
from stepwiser.config.training import (
    AblateConfig,
    DiscriminativeConfig,
    FinetuneConfig,
    LearnerConfig,
    RejectionConfig,
    SelectConfig,
    SFTConfig,
    TrainConfig,
)

TrackerName = Literal["wandb", "tensorboard", "mlflow", "trackio"]


class EngineConfig(Section):
    """vLLM engines that generate: how many, how big, with what."""

    count: Engines = Field(1, description="Engines of a pool.")
    cpus: Cpus | None = Field(
        None,
        gt=0,
        description="Ray CPUs, and threads, of one engine. Unset: one Ray CPU, and without a GPU "
        "an even share of the machine's cores as threads (OMP_NUM_THREADS, where that is set).",
        examples=[2],
    )
    gpus: Gpus = Field(0.0, description="Ray GPUs of one engine; below 1 they share one.")
    dtype: Literal["float32", "bfloat16", "auto"] = Field("auto", description="Weights' type.")
    max_model_len: Tokens = Field(4096, description="Tokens of prompt and response together.")
    max_num_seqs: Annotated[Positive, Unit("sequences")] = Field(
        256, description="Sequences decoded at once."
    )
    kv_cache_mb: Mebibytes | None = Field(
        None, description="KV cache in MiB; needed on CPU, where vLLM else takes most of the RAM."
    )
    gpu_memory_utilization: Fraction | None = Field(
        None, description="Share of the GPU's memory for one engine."
    )
    tensor_parallel_size: Annotated[Positive, Unit("GPUs")] = Field(
        1,
        description="GPUs that hold one engine.",
        examples=["engine.tensor_parallel_size=2 engine.gpus=2"],
    )
    enforce_eager: bool = Field(False, description="Do not capture CUDA graphs.")
    multiprocess: bool = Field(
        True, description="Run the engine core in its own process (in-process on a laptop)."
    )
    start_timeout_s: Seconds = Field(
        900, description="Give up on an engine after so long.", examples=[1800]
    )

    @property
    def ray_cpus(self) -> float:
        """What Ray sets apart for one engine."""
        return 1.0 if self.cpus is None else self.cpus


class SegmentConfig(Section):
    """Chunks-of-thought: self-segmentation and the SFT that teaches it (paper section 3.1)."""

    problems: Problems = Field(20000, description="Problems that the base policy is asked.")
    responses: Responses = Field(16, description="Base responses of one problem.")
    keep_per_problem: Responses = Field(4, description="Right responses kept of one problem.")
    segmenter: Literal["rule", "engine", "openai"] = Field(
        "engine", description="Rule-based teacher, prompted vLLM engine, or OpenAI-compatible URL."
    )
    segmenter_model: LocalPlace | None = Field(
        None,
        description="Model of the segmenter, named like policy_model, which it is if unset; for "
        "`openai` the name that the server knows.",
    )
    segmenter_url: str | None = Field(None, description="Base URL for `openai`.")
    segmentations: Annotated[Positive, Unit("tries at a response")] = Field(
        8, description="Tries to segment one response; the exact ones count.", examples=[4]
    )
    evaluation_problems: Problems = Field(200, description="Problems of the before/after table.")
    max_tokens: Tokens = Field(8192, description="Longest response, and longest segmentation.")
    sft: SFTConfig = SFTConfig()


SolveMethod = Literal["chunk_reset", "best_of_n", "weighted_vote", "beam_search", "early_stop"]
ScoreReduction = Literal["last", "min", "mean", "product"]


class SolveConfig(Section):
    """Search with the judge beside plain sampling and majority vote (paper section 5.1)."""

    problems: Problems = Field(500, description="Problems of `evaluation_data` to solve.")
    methods: tuple[SolveMethod, ...] = Field(
        ("chunk_reset",),
        description="What is run with each judge, beside plain sampling and majority vote.",
        examples=["solve.methods='[chunk_reset, beam_search]'"],
    )
    samples_per_chunk: Annotated[Positive, Unit("tries at a chunk")] = Field(
        5,
        description="Most tries at a chunk; where all are Negative the best of them is taken.",
        examples=[3],
    )
    searches: Annotated[Positive, Unit("searches of a problem")] = Field(
        1,
        description="Chunk-reset searches of a problem; their answers vote, by majority and by the "
        "judge's scores.",
        examples=[4],
    )
    beams: tuple[Annotated[Positive, Unit("solutions kept")], ...] = Field(
        (4,),
        description="Solutions that beam search keeps a round; each number is a search of its own.",
        examples=["solve.beams='[2, 4]'"],
    )
    expansions: Annotated[Positive, Unit("candidates of a kept solution")] = Field(
        2, description="Candidates that beam search samples of each it keeps.", examples=[4]
    )
    negatives: Annotated[Positive, Unit("Negative chunks")] = Field(
        1, description="With so many, early stop writes a sample no further.", examples=[2]
    )
    reduction: ScoreReduction = Field(
        "mean", description="A solution's score of its chunks', wherever solutions are ranked."
    )
    max_chunks: Chunks = Field(64, description="A solution that is not done by then ends.")
    max_tokens: Tokens = Field(8192, description="Longest solution; of `finetune` too.")
    temperature: Number = Field(
        1.0, ge=0, description="Sampling temperature of the policy.", examples=[0.7]
    )
    judge_temperature: Number = Field(
        1.0, ge=0, description="Sampling temperature of the judge.", examples=[0.5]
    )
    plain_samples: Responses = Field(
        8, description="Samples of a problem for pass@1 and votes, best-of-N, and early stop."
    )
    concurrent_problems: Problems = Field(
        128, description="Problems searched at once.", examples=[32]
    )

    @field_validator("methods", "beams", mode="before")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        """One alone is a list of it; twice the same would be measured twice under one name."""
        listed = value if isinstance(value, list | tuple) else [value]
        if len(set(map(str, listed))) < len(listed):
            raise ValueError(f"{list(listed)} names something twice: give each once")
        return listed

    @model_validator(mode="after")
    def _samples_to_choose_from(self) -> SolveConfig:
        several = [m for m in ("best_of_n", "weighted_vote", "early_stop") if m in self.methods]
        if several and self.plain_samples < 2:
            raise ValueError(
                f"solve.methods={', '.join(several)} choose among solve.plain_samples="
                f"{self.plain_samples} samples of a problem: set solve.plain_samples to 2 or more"
            )
        return self


class ClusterConfig(Section):
    """What the run expects of Ray."""

    address: str | None = Field(None, description="`auto` joins a running cluster; else local.")
    cpus: Cpus | None = Field(None, description="Logical CPUs of a local Ray; else the machine's.")
    expected_gpus: Annotated[int, Unit("GPUs")] = Field(
        0, ge=0, description="GPUs that `--plan` holds the plan against."
    )
    wait_for_nodes_s: Annotated[int, Unit("seconds")] = Field(
        0, ge=0, description="How long the autoscaler may take to bring what the plan needs."
    )
    object_store_mb: Mebibytes = Field(
        512, description="Object store of a local Ray.", examples=[2048]
    )
    shard: str = Field(
        "0/1",
        description="i/n: annotate every n-th unit, from the i-th (`--shard`).",
        examples=["0/4"],
    )

    @field_validator("shard")
    @classmethod
    def _shard_exists(cls, text: str) -> str:
        return str(Shard.parse(text))


class RunConfig(Section):
    """A whole run."""

    name: str = Field("embedded", description="What reports, charts and exports call the run.")
    seed: Seed = Field(
        0,
        description="Seed of everything drawn but the problems, which have `data.seed`.",
        examples=[7],
    )
    run_dir: LocalPlace = Field(
        "runs/embedded",
        description="Folder that every node of the run sees, or an address (`s3://bucket/run`).",
    )
    policy_model: LocalPlace = Field(
        "embedded",
        description="Hugging Face directory, or name on the Hub: `org/name`, or "
        "`org/name@revision` with a branch, tag or commit; `embedded` is the packaged one.",
    )
    judge_model: LocalPlace | None = Field(
        None, description="Where the judge starts; the chunk-tuned policy if unset (as the paper)."
    )
    trust_remote_code: bool = Field(
        False,
        description="Run the Python code that a model's folder brings: as you, with your files and "
        "tokens, on every machine of the run. Else a model that needs it is refused.",
    )
    allow_pickled_weights: bool = Field(
        False,
        description="Read weights that are no safetensors (.bin), which are pickled and may run "
        "code when they are read. Else a model that has no others is refused.",
    )
    tracker: TrackerName | Literal["none"] | tuple[TrackerName, ...] = Field(
        "wandb",
        description="Where curves go while a stage runs: Weights & Biases (offline without a key), "
        "TensorBoard, MLflow, Trackio, a list of these, or nowhere besides the run directory.",
        examples=["[wandb, tensorboard]"],
    )
    answer_checker: AnswerChecker = Field(
        "math_verify",
        description="`exact` (same text), `math_verify`, or an own verifier: `module:function` or "
        "an http(s) address.",
    )
    check_timeout_s: Annotated[float, Unit("seconds")] = Field(
        5.0, gt=0, description="Seconds of one check, at the longest.", examples=[10]
    )
    judge_max_tokens: Tokens = Field(3096, description="Longest analysis and verdict.")
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

    @field_validator("tracker", mode="before")
    @classmethod
    def _trackers_exist(cls, value: Any) -> Any:
        """One sentence where pydantic has one for each of the forms that the key may have."""
        known = get_args(TrackerName)
        for name in value if isinstance(value, list | tuple) else [value]:
            if name not in known and (name != "none" or name != value):
                raise ValueError(
                    f"{name} is none of {', '.join(known)}: give one of these, a list of them, or "
                    "none"
                )
        return value

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
    def trackers(self) -> tuple[TrackerName, ...]:
        """Names of those that curves go to, each once."""
        if isinstance(self.tracker, tuple):
            return tuple(dict.fromkeys(self.tracker))
        return () if self.tracker == "none" else (self.tracker,)

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
        # Without them a model that needs them is refused: what has run is what they allow.
        "trust_remote_code",
        "allow_pickled_weights",
        "annotate.min_engines",
        "annotate.max_engines",
        "train.weight_transfer",
        "train.weight_bucket_mb",
        "train.colocated",
        "train.evaluator_engines",
        # What each judge was asked is kept with its judgements: others may come beside them.
        "evaluate.judges",
        "evaluate.threshold_set",
        # Solving is measured as a whole each time, and says with what: more may be held beside.
        "solve.methods",
        "solve.searches",
        "solve.beams",
        "solve.expansions",
        "solve.negatives",
        "solve.reduction",
        # Rows that cannot be read end a start without them: what has run read every one.
        "data.skip_bad_rows",
        "evaluation_data.skip_bad_rows",
        "evaluate.skip_bad_rows",
    }
)
"""The same of single settings."""
