"""The judge's RL loop inside a Ray Train worker (paper: RL with GRPO).

A step: fetch experience from the collector, cut it into minibatches, one optimizer update each,
publish the new weights. Every rank sees the same batch and takes its own share of it.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
import torch
from torch import Tensor

from actors.learner.answers import answer
from actors.learner.batches import ResponseBatch, response_batch
from actors.learner.deepspeed_worker import DeepSpeedWorker
from actors.learner.inline_evaluation import InlineEvaluation, InlineEvaluationOptions
from actors.learner.step_metrics import StepMetrics
from actors.learner.worker_group import WorkerGroup, engine_config, keep_checkpoint, last_checkpoint
from actors.weight_sync.sender import make_sender
from actors.weight_sync.transfer import TransferBackend
from stepwiser.run.metrics_file import LOST, Metrics, append_metrics, read_metrics
from stepwiser.run.model_exports import folder_to_fill, publish_model
from stepwiser.training.experience import ExperienceBatch
from stepwiser.training.grpo import GRPOLossConfig, grpo_loss, loss_denominator
from stepwiser.training.packing import pack_micro_batches, prompt_units, split_groups
from stepwiser.training.schedule import LearningRate
from stepwiser.training.staleness import sample_age

KIND = "train"
"""What this loop's lines are called in the metrics file."""
END = "trained"
"""The line that says which step was the last one. It need not be the highest in the file: of a run
that crashed, those after its checkpoint may not have been trained again."""
_SLACK_S = 600
"""What the ranks may differ by beside that, such as the time it takes to write a model."""


@dataclass(frozen=True)
class GRPOTrainOptions:
    """One RL run of the judge."""

    group: WorkerGroup
    model_dir: str
    """Hugging Face directory the judge starts from."""
    output_dir: str
    """Path or address at which the judge that is kept stands in the end, in the same format: the
    last or the best. Beside it stand both, under its name with ``-last`` and ``-best``."""
    metrics_path: str
    steps: int
    minibatches: int
    """Optimizer updates a step; groups of samples stay together."""
    learning_rate: LearningRate
    temperature: float
    """At which the engines sample: log-probs are taken at the same one."""
    max_response_length: int
    """Tokens; the constant of the ``constant_length`` aggregation."""
    loss: GRPOLossConfig
    gradient_clipping: float = 1.0
    weight_decay: float = 0.0
    adapter: str | None = None
    """Folder of an adapter to go on with."""
    logprob_tolerance: float | None = None
    """Largest mean gap between engine and learner log-probs of the same weights; beyond it the run
    stops."""
    staleness: int = 0
    """Weight versions that a sample may be old (`stepwiser.training.staleness`)."""
    checkpoint_every: int = 10
    tracking_id: str | None = None
    """Of the W&B run; kept in every checkpoint, so that its curve can be found and continued."""
    keep: Literal["last", "best"] = "last"
    evaluation: InlineEvaluationOptions | None = None
    """For evaluations while training goes on."""
    batch_timeout_s: float = 3600.0
    publish_timeout_s: float = 600.0
    weight_transfer: TransferBackend = "object_store"
    """How weights reach the engines."""
    weight_bucket_mb: int = 512
    """Weights are gathered and sent in pieces of so many MiB."""
    colocated: bool = False
    """Engines share the learner's GPUs, and sleep while it works."""

    @property
    def patient_group(self) -> WorkerGroup:
        """The group, with ranks that wait for each other longer than one of them may be held up.

        Rank 0 speaks with evaluator and engines for all, and the batch of a collector that died is
        sampled anew for the ranks that do not have it yet.
        """
        evaluation = 0.0 if self.evaluation is None else self.evaluation.timeout_s
        wait = int(max(evaluation, self.publish_timeout_s, self.batch_timeout_s)) + _SLACK_S
        return replace(self.group, collective_timeout_s=max(wait, self.group.collective_timeout_s))

    @property
    def last_dir(self) -> str:
        return f"{self.output_dir}-last"

    @property
    def best_dir(self) -> str:
        """Made by the evaluator."""
        return f"{self.output_dir}-best"


def steps_trained(metrics_path: str, name: str) -> int:
    """Steps of a training that has ended; 0 of one that has not."""
    ends = read_metrics(metrics_path, END, name)
    return max(ends, key=lambda line: line["time"])["step"] + 1 if ends else 0


def grpo_worker(config: dict[str, Any]) -> None:
    """What every rank runs.

    ``config``: options (GRPOTrainOptions), collector and evaluator (actor handles, the latter or
    None).
    """
    options: GRPOTrainOptions = config["options"]
    if options.colocated:
        # Of a run that goes on they are awake, and the model would find no room.
        make_room(config["collector"], options.publish_timeout_s)
    worker = DeepSpeedWorker(
        engine_config(
            options.group,
            options.model_dir,
            options.gradient_clipping,
            options.weight_decay,
            options.adapter,
        )
    )
    GRPOLoop(options, config["collector"], worker, config).run()


def make_room(collector: Any, timeout_s: float) -> None:
    """Put the engines to sleep; returns on every rank when they are."""
    if torch.distributed.get_rank() == 0:
        answer(
            collector.sleep.remote(),
            timeout_s,
            f"the engines did not free their memory within {timeout_s:.0f} s; look at their logs, "
            "or raise publish_timeout_s",
        )
    torch.distributed.barrier()


class GRPOLoop:
    """The loop of one rank. The step number is all that the collector needs to resume."""

    def __init__(
        self,
        options: GRPOTrainOptions,
        collector: Any,
        worker: DeepSpeedWorker,
        worker_config: Mapping[str, Any] | None = None,
    ) -> None:
        """``worker_config``: what Ray Train handed to this worker."""
        self._worker_config = worker_config or {}
        self._options = options
        self._collector = collector
        self._worker = worker
        self._sender = make_sender(
            options.weight_transfer,
            worker,
            options.weight_bucket_mb << 20,
            self._hand_over,
            lambda version, refs: ray.get(collector.keep_copy.remote(version, refs)),
        )
        self._evaluation = InlineEvaluation(
            options.evaluation,
            self._worker_config.get("evaluator"),
            worker,
            options.best_dir,
            options.steps,
        )

    def run(self) -> None:
        start = self._restore()
        # Engines wait for weights and the learner waits for samples: publish before the first
        # fetch, or a resumed run waits for ever.
        self._publish(start)
        self._evaluation.begin(start)
        step = start
        began = time.monotonic()
        while step < self._options.steps and not self._evaluation.stop():
            batch, fetch_s = self._fetch(step)
            if batch is None:
                break
            if self._options.colocated:
                self._evaluation.free_engines()
                make_room(self._collector, self._options.publish_timeout_s)
            metrics = self.train(step, batch)
            self._evaluation.free_engines()
            published, publish_s = self._publish(step + 1)
            self._evaluation.after_publish(step + 1)
            # They go with a collector that dies before it is asked for them.
            metrics = {**(published or {LOST: "figures of the rollouts"}), **metrics}
            began, seconds = time.monotonic(), time.monotonic() - began
            metrics |= {
                "seconds_fetch": fetch_s,
                "seconds_publish": publish_s,
                "seconds_step": seconds,
                # Nothing to compute: no batch to train on, or weights on their way.
                "learner_idle": (fetch_s + publish_s) / seconds,
            }
            if self._worker.rank == 0:
                append_metrics(self._options.metrics_path, KIND, self._options.group.name, metrics)
            step += 1
            if step % self._options.checkpoint_every == 0 and step < self._options.steps:
                self._checkpoint(step, metrics)
        if step > start:
            self._checkpoint(step, {"step": step - 1})
        last = folder_to_fill(self._options.last_dir)
        self._worker.export(last)
        if self._worker.rank == 0:
            publish_model(last, self._options.last_dir)
        self._evaluation.finish()
        path, name = self._options.metrics_path, self._options.group.name
        if self._worker.rank == 0 and steps_trained(path, name) != step:
            append_metrics(path, END, name, {"step": step - 1})

    def _restore(self) -> int:
        with last_checkpoint(self._worker_config) as directory:
            if directory is None:
                return 0
            return int(self._worker.load_checkpoint(directory)["step"])

    def _checkpoint(self, step: int, metrics: Metrics) -> None:
        """``step`` updates are in the weights; it is also all that the collector needs to know.

        The prompts of a step follow from its number, in a live annotation by way of its log.
        """
        state = {"step": step, "tracking_id": self._options.tracking_id}
        keep_checkpoint(metrics, lambda folder: self._worker.save_checkpoint(folder, state))

    def _fetch(self, step: int) -> tuple[ExperienceBatch | None, float]:
        began = time.monotonic()
        batch = self._ask(step)
        if not self._same(batch):
            # A collector that died between two answers has sampled anew: now all have its batch.
            batch = self._ask(step)
            if not self._same(batch):
                raise RuntimeError(
                    f"ranks were given different batches for step {step}; next_batch must answer "
                    "the same for the same step"
                )
        return batch, time.monotonic() - began

    def _ask(self, step: int) -> ExperienceBatch | None:
        timeout = self._options.batch_timeout_s
        late = (
            f"the collector gave no batch for step {step} within {timeout:.0f} s; look at its "
            "engines, or raise batch_timeout_s"
        )
        batch = answer(self._collector.next_batch.remote(step), timeout, late)
        return answer(batch, timeout, late) if isinstance(batch, ray.ObjectRef) else batch

    def _same(self, batch: ExperienceBatch | None) -> bool:
        """Whether every rank was given this batch."""
        mark = -1.0 if batch is None else float(zlib.crc32(batch.response_ids.tobytes()))
        low, high = self._worker.all_reduce([-mark, mark], maximum=True)
        return -low == high

    def _publish(self, version: int) -> tuple[Metrics, float]:
        """Hand the weights to the collector; its figures come back on rank 0."""
        began = time.monotonic()
        if self._options.colocated:
            self._worker.free_unused()
        figures = self._sender.send(version, self._options.publish_timeout_s)
        # Nobody may ask for the next batch before the engines have the weights for it.
        torch.distributed.barrier()
        return figures, time.monotonic() - began

    def _hand_over(self, version: int, source: Any, timeout: float) -> Metrics:
        """``source``: references to blobs, or the description of a transfer."""
        figures = answer(
            self._collector.publish.remote(version, source, timeout),
            timeout,
            f"the engines did not take weight version {version} within {timeout:.0f} s; look at "
            "their logs, or raise publish_timeout_s",
        )
        return figures or {}

    def train(self, step: int, batch: ExperienceBatch) -> Metrics:
        """All updates of one step; the returned metrics are the same on every rank."""
        options, worker = self._options, self._worker
        age = sample_age(step, int(batch.weight_versions.min()), options.staleness)
        rate = options.learning_rate.at(step, options.steps)
        parts = split_groups(batch.groups.tolist(), options.minibatches)
        step_metrics = StepMetrics()
        with step_metrics.timed("logprobs"):
            plans = [self._plan(batch, part) for part in parts]
            # The first update starts from the weights that old log-probs are taken with: there
            # they are the detached new ones. Later ones need a pass before any update.
            olds = [None, *([self._old_logprobs(m) for m in plan] for plan in plans[1:])]
        with step_metrics.timed("train"):
            for part, plan, old in zip(parts, plans, olds, strict=True):
                loss_fn = self._loss_fn(step, self._denominator(batch, part), old, step_metrics)
                pairs = list(enumerate(plan))
                step_metrics.gradient_norms.append(worker.train_step(pairs, loss_fn, rate))
        metrics = {
            "step": step,
            "learning_rate": rate,
            "updates": len(parts),
            # In these weights, by whichever start they were made.
            "optimizer_steps": worker.engine.global_steps,
            "sequences": len(batch),
            "batch_reward": float(batch.rewards.mean()),
            "response_tokens": len(batch.response_ids),
            "response_length_mean": float(batch.response_lengths.mean()),
            "prompt_tokens": len(batch.prompt_ids),
            "staleness_max": age,
            "staleness_mean": step - float(batch.weight_versions.mean()),
            **step_metrics.combined(worker),
        }
        self._check_gap(metrics)
        return metrics

    def _check_gap(self, metrics: Metrics) -> None:
        tolerance, gap = self._options.logprob_tolerance, metrics.get("logprob_gap")
        if tolerance is not None and gap is not None and gap > tolerance:
            raise RuntimeError(
                f"step {metrics['step']}: engine and learner log-probs of the same tokens differ "
                f"by {gap:.3g} on average, above logprob_tolerance {tolerance:g}: the engines hold "
                "other weights, another temperature or another number type than the learner"
            )

    def _plan(self, batch: ExperienceBatch, part: list[int]) -> list[ResponseBatch]:
        """This rank's micro-batches of one minibatch; as many as on every other rank."""
        budget = self._options.group.max_tokens_per_microbatch
        units = prompt_units(batch, part, budget)
        shares = pack_micro_batches(
            [unit.tokens for unit in units], self._worker.world_size, budget
        )
        return [
            response_batch(batch, [units[i].sequences for i in chosen]).to(self._worker.device)
            for chosen in shares[self._worker.rank]
        ]

    def _denominator(self, batch: ExperienceBatch, part: list[int]) -> float:
        """Of one update over all ranks, which DeepSpeed will average."""
        options = self._options
        lengths = batch.response_lengths[part].tolist()
        total = loss_denominator(lengths, options.loss, options.max_response_length)
        return total / self._worker.world_size

    def _old_logprobs(self, micro_batch: ResponseBatch) -> Tensor:
        with torch.no_grad():
            return self._worker.logprobs(micro_batch.tokens, self._options.temperature)[0]

    def _reference_logprobs(self, micro_batch: ResponseBatch) -> Tensor | None:
        if not self._options.loss.kl_coefficient:
            return None
        temperature = self._options.temperature
        return micro_batch.spread(self._worker.reference_logprobs(micro_batch.tokens, temperature))

    def _loss_fn(
        self, step: int, denominator: float, old: list[Tensor] | None, step_metrics: StepMetrics
    ) -> Callable[[tuple[int, ResponseBatch]], Tensor]:
        temperature = self._options.temperature

        def loss(numbered: tuple[int, ResponseBatch]) -> Tensor:
            number, micro_batch = numbered
            flat, entropies = self._worker.logprobs(micro_batch.tokens, temperature)
            old_flat = flat.detach() if old is None else old[number]
            at_start = micro_batch.spread(old_flat)
            output = grpo_loss(
                micro_batch.spread(flat),
                at_start,
                micro_batch.advantages,
                micro_batch.mask,
                self._options.loss,
                denominator,
                micro_batch.engine_logprobs,
                self._reference_logprobs(micro_batch),
            )
            step_metrics.add(output.loss, output.metrics, entropies)
            step_metrics.compare(at_start, micro_batch, step)
            return output.loss

        return loss
