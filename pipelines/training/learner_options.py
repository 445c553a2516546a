"""From the configuration to Ray Train: the worker group, GRPO and SFT options."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from actors.learner.adapters import check_start
from actors.learner.grpo_loop import GRPOTrainOptions
from actors.learner.sft import SFTJob, SFTOptions, SFTResult, run_sft
from actors.learner.worker_group import WorkerGroup
from pipelines.session.engine_options import share_of_cores
from pipelines.session.session import Session
from stepwiser.config import RunConfig
from stepwiser.run.resource_plan import weight_transfer
from stepwiser.run.store import CURVE
from stepwiser.training.experience import TokenExamples
from stepwiser.training.grpo import GRPOLossConfig
from stepwiser.training.schedule import LearningRate


def worker_group(session: Session, name: str) -> WorkerGroup:
    """Ray Train workers of a run; checkpoints live in the run directory."""
    learner = session.config.learner
    return WorkerGroup(
        name=name,
        storage_path=session.store.called("checkpoints"),
        num_workers=learner.workers,
        min_workers=learner.min_workers,
        gpus_per_worker=learner.gpus,
        cpus_per_worker=learner.ray_cpus,
        threads=learner_threads(session.config, session.usage.stage),
        zero_stage=learner.zero_stage,
        precision=learner.precision,
        gradient_checkpointing=learner.gradient_checkpointing,
        max_tokens_per_microbatch=learner.max_tokens_per_microbatch,
        max_failures=learner.max_failures,
        trust_remote_code=session.config.trust_remote_code,
        allow_pickled_weights=session.config.allow_pickled_weights,
        lora=learner.lora if learner.lora.rank else None,
    )


def learner_threads(config: RunConfig, stage: str) -> int:
    """CPU threads of one worker.

    Without a GPU those of `learner.cpus` where that is set, else an even share of the machine's
    cores: engines wait while it computes. Where they go on, it has what Ray sets apart for it.
    """
    learner, train = config.learner, config.train
    beside_engines = stage == "train" and (train.staleness or train.live)
    if learner.cpus is not None or learner.gpus or beside_engines:
        return learner.ray_cpus
    return share_of_cores(config, learner.workers)


def grpo_options(
    session: Session, name: str, start: str, tracking_id: str | None = None
) -> GRPOTrainOptions:
    """GRPO of the judge as `train` asks for it."""
    train = session.config.train
    return GRPOTrainOptions(
        group=worker_group(session, name),
        model_dir=start,
        output_dir=session.store.model(name),
        metrics_path=session.store.called(CURVE),
        steps=train.steps,
        minibatches=train.prompts_per_step // train.minibatch_prompts,
        learning_rate=LearningRate(
            train.learning_rate, train.schedule, train.warmup_steps, floor=0.05
        ),
        temperature=train.temperature,
        max_response_length=train.max_response_tokens,
        loss=GRPOLossConfig(
            clip_low=train.clip_low,
            clip_high=train.clip_high,
            aggregation=train.aggregation,
            importance_cap=train.importance_cap,
            kl_coefficient=train.kl_coefficient,
            kl_estimator=train.kl_estimator,
        ),
        gradient_clipping=train.max_grad_norm,
        weight_decay=train.weight_decay,
        adapter=adapter_start(session),
        logprob_tolerance=train.logprob_tolerance,
        staleness=train.staleness,
        checkpoint_every=train.checkpoint_every,
        tracking_id=tracking_id,
        keep=train.keep,
        publish_timeout_s=train.publish_timeout_s,
        weight_transfer=weight_transfer(session.config),
        weight_bucket_mb=train.weight_bucket_mb,
        colocated=train.colocated,
    )


def adapter_start(session: Session) -> str | None:
    """The folder of `train.adapter`; raises UserError before anything starts."""
    chosen = session.config.train.adapter
    if chosen is None:
        return None
    check_start(session.config.learner.lora, chosen)
    return str(Path(chosen).absolute())


def response_example(prompt: list[int], response: list[int]) -> tuple[list[int], list[bool]]:
    """Token ids that SFT reads, and for each whether it is learned: the response is."""
    return prompt + response, [False] * len(prompt) + [True] * len(response)


def write_examples(
    session: Session, name: str, examples: Iterable[tuple[list[int], list[bool]]]
) -> str:
    """Write sft/NAME.parquet of the run; returns its path."""
    file = f"sft/{name}.parquet"
    with session.store.writing(file) as temporary:
        TokenExamples.from_pairs(examples).write_parquet(temporary)
    return session.store.called(file)


def run_sft_jobs(session: Session, jobs: Sequence[SFTJob]) -> list[SFTResult]:
    """Fine-tune one model after another in one worker group."""
    name = "sft-" + jobs[0].name
    options = SFTOptions(
        group=worker_group(session, name), metrics_path=session.store.called(CURVE)
    )
    finished = 0
    title = f"sft, {jobs[0].name}" if len(jobs) == 1 else "sft"  # a note names each of several
    with session.progress(title, len(jobs), "models") as bar:

        def on_metrics(row: dict[str, Any]) -> None:
            nonlocal finished
            if row["step"] + 1 == row["steps"]:
                finished += 1
            note = f"{row['name']}: step {row['step'] + 1}/{row['steps']}, loss {row['loss']:.3f}"
            bar.update(finished, note=note)

        return run_sft(jobs, options, on_metrics)
