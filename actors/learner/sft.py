"""Supervised fine-tuning jobs, one after the other in one Ray Train worker group.

Starting a worker group costs ten seconds on a laptop, so baselines and picks share one. Rows are
packed by token budget; the loss is the mean over the learned tokens of the *global* batch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from actors.learner.batches import FlatTokens, example_tokens, keep_step_tokens
from actors.learner.checkpoints import STATE_FILE
from actors.learner.deepspeed_worker import DeepSpeedWorker
from actors.learner.worker_group import (
    WorkerGroup,
    engine_config,
    last_checkpoint,
    run_worker_group,
)
from stepwiser.config.training import SFTConfig
from stepwiser.errors import UserError
from stepwiser.run.metrics_file import Metrics, append_metrics
from stepwiser.run.model_exports import folder_to_fill, publish_model, read_model_file
from stepwiser.storage.places import file_here
from stepwiser.training.experience import TokenExamples
from stepwiser.training.packing import pack_micro_batches, shared_prefix
from stepwiser.training.schedule import LearningRate

KIND = "sft"
"""What these jobs' lines are called in the metrics file."""

RESULT_FILE = "sft.json"


@dataclass(frozen=True)
class SFTJob:
    """One model to fine-tune."""

    name: str
    model_dir: str
    output_dir: str
    examples: str | ray.ObjectRef
    """Parquet file (see TokenExamples) or a reference to TokenExamples."""
    learning_rate: LearningRate
    batch_size: int
    """Examples of one optimizer step, over all ranks."""
    steps: int | None
    """Optimizer steps; None trains ``epochs`` instead."""
    epochs: int
    weight_decay: float
    seed: int
    evaluation: str | ray.ObjectRef | None = None
    """Held-out examples: their loss is taken every epoch and the best weights are kept."""

    @classmethod
    def from_config(
        cls,
        name: str,
        model_dir: str,
        output_dir: str,
        examples: str | ray.ObjectRef,
        config: SFTConfig,
        seed: int,
        evaluation: str | ray.ObjectRef | None = None,
    ) -> SFTJob:
        return cls(
            name=name,
            model_dir=model_dir,
            output_dir=output_dir,
            examples=examples,
            learning_rate=LearningRate(config.learning_rate, config.schedule, config.warmup_steps),
            batch_size=config.batch_size,
            steps=config.steps,
            epochs=config.epochs,
            weight_decay=config.weight_decay,
            seed=seed,
            evaluation=evaluation,
        )


@dataclass(frozen=True)
class SFTOptions:
    """What all jobs of one worker group share."""

    group: WorkerGroup
    metrics_path: str
    gradient_clipping: float = 1.0
    checkpoint_every: int = 500
    """Steps; a job that is shorter is done again from its start after a crash."""


@dataclass(frozen=True)
class SFTResult:
    """A finished job."""

    name: str
    output_dir: str
    steps: int
    loss: float
    """Mean token loss over the last epoch's steps."""
    heldout_loss: float | None
    """Of the weights that were kept; None without an evaluation set."""
    trained_tokens: int
    """Tokens that went through the model, all epochs and ranks."""
    seconds: float


def run_sft(
    jobs: Sequence[SFTJob],
    options: SFTOptions,
    on_metrics: Callable[[Metrics], None] | None = None,
) -> list[SFTResult]:
    """Run all jobs in order; blocks. After a crash only the unfinished ones are continued.

    ``on_metrics`` gets a line a step: name (of the job), step, steps, loss, learning_rate, and
    heldout_loss at the end of an epoch.
    """
    if not jobs:
        return []
    run_worker_group(
        sft_worker,
        {"options": options, "jobs": list(jobs)},
        options.group,
        options.metrics_path,
        (KIND,),
        on_metrics,
    )
    return [SFTResult(**json.loads(read_model_file(job.output_dir, RESULT_FILE))) for job in jobs]


def epoch_batches(count: int, batch_size: int, epoch: int, seed: int) -> list[list[int]]:
    """Indices of each batch of one epoch; the last one may be smaller."""
    order = np.random.default_rng((seed, epoch)).permutation(count).tolist()
    return [order[i : i + batch_size] for i in range(0, count, batch_size)]


def fingerprint(jobs: Sequence[SFTJob]) -> str:
    """Names what a worker group does, so that a checkpoint of other jobs is not continued."""
    specs = [
        {k: repr(v) for k, v in vars(job).items() if not isinstance(v, ray.ObjectRef)}
        for job in jobs
    ]
    return hashlib.sha256(json.dumps(specs, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Progress:
    """Where the worker group stands; this is what a checkpoint says in words."""

    jobs: str
    job: int = 0
    step: int = 0
    best: float | None = None
    losses: tuple[float, ...] = ()
    """Of the steps of the current epoch."""
    trained_tokens: int = 0
    seconds: float = 0.0


def sft_worker(config: dict[str, Any]) -> None:
    """What every rank runs. ``config``: options (SFTOptions), jobs (list of SFTJob)."""
    options: SFTOptions = config["options"]
    jobs: list[SFTJob] = config["jobs"]
    progress = _Progress(fingerprint(jobs))
    with last_checkpoint(config) as directory:
        if directory is None:
            _run_jobs(jobs, options, progress, None)
            return
        state = json.loads((Path(directory) / STATE_FILE).read_text())["progress"]
        if state["jobs"] != progress.jobs:
            raise UserError(
                f"{options.group.storage_path} already holds a run {options.group.name!r} of other "
                "jobs; give this one another name or remove that folder"
            )
        _run_jobs(jobs, options, _Progress(**state), directory)


def _run_jobs(
    jobs: list[SFTJob], options: SFTOptions, progress: _Progress, directory: str | None
) -> None:
    while progress.job < len(jobs):
        job = _Job(jobs[progress.job], options, progress)
        progress = job.run(directory if progress.step else None)
        job.close()


class _Job:
    """One job on one rank."""

    def __init__(self, job: SFTJob, options: SFTOptions, progress: _Progress) -> None:
        self._job = job
        self._options = options
        self._progress = progress
        self._examples = _examples(job.examples)
        self._heldout = None if job.evaluation is None else _examples(job.evaluation)
        self._per_epoch = -(-len(self._examples) // job.batch_size)
        self._steps = job.steps or job.epochs * self._per_epoch
        self._output = folder_to_fill(job.output_dir)
        self._best_dir = self._output.with_name(f"{self._output.name}.best")
        self._worker = DeepSpeedWorker(
            engine_config(options.group, job.model_dir, options.gradient_clipping, job.weight_decay)
        )

    def close(self) -> None:
        self._worker.close()

    def run(self, directory: str | None) -> _Progress:
        """Train to the end; ``directory`` holds the engine's checkpoint where there is one."""
        if directory is not None:
            self._worker.load_checkpoint(directory)
        progress = self._progress
        while progress.step < self._steps:
            began = time.monotonic()
            epoch, position = divmod(progress.step, self._per_epoch)
            batches = epoch_batches(
                len(self._examples), self._job.batch_size, epoch, self._job.seed
            )
            metrics = self._train(progress.step, batches[position])
            losses = (() if position == 0 else progress.losses) + (metrics["loss"],)
            step = progress.step + 1
            if self._heldout and (position + 1 == len(batches) or step == self._steps):
                metrics["heldout_loss"] = self._evaluate(self._heldout)
                progress = self._keep_best(progress, metrics["heldout_loss"])
            progress = replace(
                progress,
                step=step,
                losses=losses,
                trained_tokens=progress.trained_tokens + metrics["tokens"],
                seconds=progress.seconds + time.monotonic() - began,
            )
            if self._worker.rank == 0:
                append_metrics(self._options.metrics_path, KIND, self._job.name, metrics)
            if step % self._options.checkpoint_every == 0 and step < self._steps:
                self._checkpoint(progress, engine=True)
        self._finish(progress)
        progress = _Progress(progress.jobs, job=progress.job + 1)
        self._checkpoint(progress, engine=False)
        return progress

    def _train(self, step: int, indices: list[int]) -> Metrics:
        micro_batches = self._plan(self._examples, indices)
        learned = sum(int(self._examples.example(i)[1][1:].sum()) for i in indices)
        rate = self._job.learning_rate.at(step, self._steps)
        total: list[Tensor] = []

        def loss_fn(tokens: FlatTokens | None) -> Tensor:
            # Times the number of ranks, because DeepSpeed averages over them.
            loss = self._loss_sum(tokens) * (self._worker.world_size / learned)
            total.append(loss.detach())
            return loss

        norm = self._worker.train_step(micro_batches, loss_fn, rate)
        mean = float(torch.stack(total).sum()) / self._worker.world_size
        (loss,) = self._worker.all_reduce([mean])
        return {
            "step": step,
            "steps": self._steps,
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens": int(self._examples.lengths[indices].sum()),
            "learned_tokens": learned,
        }

    def _evaluate(self, examples: TokenExamples) -> float:
        total = 0.0
        with torch.no_grad():
            for tokens in self._plan(examples, list(range(len(examples)))):
                total += float(self._loss_sum(tokens))
        (total,) = self._worker.all_reduce([total])
        learned = sum(int(examples.example(i)[1][1:].sum()) for i in range(len(examples)))
        return total / learned

    def _plan(self, examples: TokenExamples, indices: list[int]) -> list[FlatTokens | None]:
        """This rank's micro-batches; None keeps step with the other ranks."""
        shared = shared_prefix(examples, indices)
        shares = pack_micro_batches(
            examples.lengths[indices].tolist(),
            self._worker.world_size,
            self._options.group.max_tokens_per_microbatch,
            shared,
        )
        return [
            example_tokens(examples, [indices[i] for i in chosen], shared).to(self._worker.device)
            if chosen
            else None
            for chosen in shares[self._worker.rank]
        ]

    def _loss_sum(self, tokens: FlatTokens | None) -> Tensor:
        if tokens is None:
            tokens = keep_step_tokens().to(self._worker.device)
            return self._worker.logprobs(tokens)[0].sum() * 0
        return -self._worker.logprobs(tokens)[0].sum()

    def _keep_best(self, progress: _Progress, loss: float) -> _Progress:
        if progress.best is not None and loss >= progress.best:
            return progress
        self._worker.export(self._best_dir)
        return replace(progress, best=loss)

    def _finish(self, progress: _Progress) -> None:
        output, made = self._output, self._best_dir
        if progress.best is None:
            self._worker.export(made)
        if self._worker.rank == 0:
            result = SFTResult(
                name=self._job.name,
                output_dir=self._job.output_dir,
                steps=progress.step,
                loss=sum(progress.losses) / len(progress.losses),
                heldout_loss=progress.best,
                trained_tokens=progress.trained_tokens,
                seconds=progress.seconds,
            )
            # Else the best model has had its name since before a kill.
            renamed = not made.exists()
            # Before the rename: whoever finds the model finds its result in it.
            ((output if renamed else made) / RESULT_FILE).write_text(json.dumps(asdict(result)))
            if not renamed:
                shutil.rmtree(output, ignore_errors=True)
                made.rename(output)
            publish_model(output, self._job.output_dir)

    def _checkpoint(self, progress: _Progress, engine: bool) -> None:
        from ray.train import Checkpoint, report

        state = {"progress": asdict(progress)}
        with tempfile.TemporaryDirectory() as directory:
            if engine:
                self._worker.save_checkpoint(directory, state)
            elif self._worker.rank == 0:
                (Path(directory) / STATE_FILE).write_text(json.dumps(state))
            report({"job": progress.job}, checkpoint=Checkpoint.from_directory(directory))


def _examples(source: str | ray.ObjectRef) -> TokenExamples:
    if isinstance(source, ray.ObjectRef):
        examples = ray.get(source)
    else:
        with file_here(source) as path:
            examples = TokenExamples.read_parquet(path)
    if not len(examples):
        raise UserError(f"{source} holds no examples; fine-tuning needs at least one")
    return examples
