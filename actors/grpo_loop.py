"""The judge's RL loop inside a Ray Train worker (paper: RL with GRPO).

A step: fetch experience from the collector, cut it into minibatches, one optimizer update each,
publish the new weights. Every rank sees the same batch and takes its own share of it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from actors.batches import ResponseBatch, response_batch
from actors.deepspeed_worker import STATE_FILE, DeepSpeedWorker
from actors.weight_sync.sending import make_sender
from actors.weight_sync.ticket import Way
from actors.worker_group import Metrics, WorkerGroup, append_metrics, engine_config
from stepwiser.experience import ExperienceBatch
from stepwiser.grpo import GRPOLossConfig, entropy, grpo_loss, token_logprobs
from stepwiser.packing import pack_micro_batches, prompt_units, split_groups
from stepwiser.schedule import LearningRate
from stepwiser.staleness import sample_age

KIND = "train"
"""What this loop's lines are called in the metrics file."""

_ENTROPY_ROWS = 2048


@dataclass(frozen=True)
class GRPOTrainOptions:
    """One RL run of the judge."""

    group: WorkerGroup
    model_dir: str
    """Hugging Face directory the judge starts from."""
    output_dir: str
    """Where the trained judge is written, in the same format."""
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
    logprob_tolerance: float | None = None
    """Largest mean gap between engine and learner log-probs of the same weights; beyond it the run
    stops."""
    staleness: int = 0
    """Weight versions that a sample may be old (`stepwiser.staleness`)."""
    checkpoint_every: int = 10
    batch_timeout_s: float = 3600.0
    publish_timeout_s: float = 600.0
    weight_transfer: Way = "object_store"
    """How weights reach the engines."""
    weight_bucket_mb: int = 512
    """Weights are gathered and sent in pieces of so many MiB."""
    colocated: bool = False
    """Engines share the learner's GPUs, and sleep while it works."""


def grpo_worker(config: dict[str, Any]) -> None:
    """What every rank runs. ``config``: options (GRPOTrainOptions), collector (actor handle)."""
    options: GRPOTrainOptions = config["options"]
    if options.colocated:
        # Of a run that goes on they are awake, and the model would find no room.
        make_room(config["collector"], options.publish_timeout_s)
    worker = DeepSpeedWorker(
        engine_config(
            options.group, options.model_dir, options.gradient_clipping, options.weight_decay
        )
    )
    GRPOLoop(options, config["collector"], worker).run()


def make_room(collector: Any, timeout_s: float) -> None:
    """Put the engines to sleep; returns on every rank when they are."""
    if torch.distributed.get_rank() == 0:
        ray.get(collector.sleep.remote(), timeout=timeout_s)
    torch.distributed.barrier()


class GRPOLoop:
    """The loop of one rank. The step number is all that the collector needs to resume."""

    def __init__(self, options: GRPOTrainOptions, collector: Any, worker: DeepSpeedWorker) -> None:
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

    def run(self) -> None:
        start = self._restore()
        # Engines wait for weights and the learner waits for samples: publish before the first
        # fetch, or a resumed run waits for ever.
        self._publish(start)
        step = start
        began = time.monotonic()
        while step < self._options.steps:
            batch, fetch_s = self._fetch(step)
            if batch is None:
                break
            metrics = self._train(step, batch)
            published, publish_s = self._publish(step + 1)
            metrics = {**published, **metrics}
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
        self._worker.export(self._options.output_dir)

    def _restore(self) -> int:
        from ray.train import get_checkpoint

        checkpoint = get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as directory:
            return int(self._worker.load_checkpoint(directory)["step"])

    def _checkpoint(self, step: int, metrics: Metrics) -> None:
        """``step`` updates are in the weights. Nothing here is random, so no RNG state is kept."""
        from ray.train import Checkpoint, report

        with tempfile.TemporaryDirectory() as directory:
            self._worker.save_checkpoint(directory, {"step": step})
            report(metrics, checkpoint=Checkpoint.from_directory(directory))

    def _fetch(self, step: int) -> tuple[ExperienceBatch | None, float]:
        began = time.monotonic()
        timeout = self._options.batch_timeout_s
        try:
            batch = ray.get(self._collector.next_batch.remote(step), timeout=timeout)
            if isinstance(batch, ray.ObjectRef):
                batch = ray.get(batch, timeout=timeout)
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError(
                f"the collector gave no batch for step {step} within {timeout:.0f} s; look at its "
                "engines, or raise batch_timeout_s"
            ) from error
        size = 0 if batch is None else len(batch.response_ids)
        low, high = self._worker.all_reduce([-size, size], maximum=True)
        if -low != high:
            raise RuntimeError(
                f"ranks were given different batches for step {step} ({-low:.0f} and {high:.0f} "
                "response tokens); next_batch must answer the same for the same step"
            )
        return batch, time.monotonic() - began

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
        """``source``: references to blobs, or the ticket of a transfer."""
        try:
            call = self._collector.publish.remote(version, source, timeout)
            figures = ray.get(call, timeout=timeout)
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError(
                f"the engines did not take weight version {version} within {timeout:.0f} s; look "
                "at their logs, or raise publish_timeout_s"
            ) from error
        return figures or {}

    def _train(self, step: int, batch: ExperienceBatch) -> Metrics:
        """All updates of one step; the returned metrics are the same on every rank."""
        if self._options.colocated:
            make_room(self._collector, self._options.publish_timeout_s)
        options, worker = self._options, self._worker
        age = sample_age(step, int(batch.weight_versions.min()), options.staleness)
        rate = options.learning_rate.at(step, options.steps)
        parts = split_groups(batch.groups.tolist(), options.minibatches)
        tally = _Tally()
        with tally.timed("logprobs"):
            plans = [self._plan(batch, part) for part in parts]
            # The first update starts from the weights that old log-probs are taken with: there
            # they are the detached new ones. Later ones need a pass before any update.
            olds = [None, *([self._old_logprobs(m) for m in plan] for plan in plans[1:])]
        with tally.timed("train"):
            for part, plan, old in zip(parts, plans, olds, strict=True):
                loss_fn = self._loss_fn(step, self._denominator(batch, part), old, tally)
                pairs = list(enumerate(plan))
                tally.gradient_norms.append(worker.train_step(pairs, loss_fn, rate))
        metrics = {
            "step": step,
            "learning_rate": rate,
            "updates": len(parts),
            "sequences": len(batch),
            "batch_reward": float(batch.rewards.mean()),
            "response_tokens": len(batch.response_ids),
            "response_length_mean": float(batch.response_lengths.mean()),
            "prompt_tokens": len(batch.prompt_ids),
            "staleness_max": age,
            "staleness_mean": step - float(batch.weight_versions.mean()),
            **tally.combined(worker),
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
        """Global denominator of one update, over the ranks, which DeepSpeed will average."""
        aggregation = self._options.loss.aggregation
        if aggregation == "token_mean":
            total = int(batch.response_lengths[part].sum())
        elif aggregation == "sequence_mean":
            total = len(part)
        else:
            total = len(part) * self._options.max_response_length
        return total / self._worker.world_size

    def _old_logprobs(self, micro_batch: ResponseBatch) -> Tensor:
        with torch.no_grad():
            logits = self._worker.logits(micro_batch.tokens)
            return token_logprobs(logits, micro_batch.tokens.targets, self._options.temperature)

    def _reference_logprobs(self, micro_batch: ResponseBatch) -> Tensor | None:
        if not self._options.loss.kl_coefficient:
            return None
        logits = self._worker.reference_logits(micro_batch.tokens)
        targets = micro_batch.tokens.targets
        return micro_batch.spread(token_logprobs(logits, targets, self._options.temperature))

    def _loss_fn(
        self, step: int, denominator: float, old: list[Tensor] | None, tally: _Tally
    ) -> Callable[[tuple[int, ResponseBatch]], Tensor]:
        temperature = self._options.temperature

        def loss(numbered: tuple[int, ResponseBatch]) -> Tensor:
            number, micro_batch = numbered
            logits = self._worker.logits(micro_batch.tokens)
            flat = token_logprobs(logits, micro_batch.tokens.targets, temperature)
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
            tally.add(output.loss, output.metrics, micro_batch, logits.detach(), temperature)
            tally.compare(at_start, micro_batch, step)
            return output.loss

        return loss


class _Tally:
    """Sums up the micro-batches of one step on one rank."""

    def __init__(self) -> None:
        self.gradient_norms: list[float] = []
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._peaks: defaultdict[str, float] = defaultdict(float)
        self._seconds: dict[str, float] = {}
        self._loss: Tensor | float = 0.0
        self._entropy: Tensor | float = 0.0
        self._gap: Tensor | float = 0.0
        self._fresh: Tensor | float = 0.0

    @contextmanager
    def timed(self, name: str) -> Any:
        began = time.monotonic()
        yield
        self._seconds[f"seconds_{name}"] = time.monotonic() - began

    def add(
        self,
        loss: Tensor,
        metrics: dict[str, float],
        micro_batch: ResponseBatch,
        logits: Tensor,
        temperature: float,
    ) -> None:
        self._loss = self._loss + loss.detach()
        tokens = metrics["tokens"]
        for name, value in metrics.items():
            if name.endswith("_max"):
                self._peaks[name] = max(self._peaks[name], value)
            elif name not in ("tokens", "sequences"):
                self._sums[name] += value * tokens
        self._sums["tokens"] += tokens
        if tokens:
            for rows in logits.split(_ENTROPY_ROWS):
                self._entropy = self._entropy + entropy(rows, temperature).sum()

    def compare(self, at_start: Tensor, micro_batch: ResponseBatch, step: int) -> None:
        """Log-probs of engine and learner where both have the weights of this step.

        Older samples differ by what was learned since, which says nothing of the two.
        """
        if micro_batch.engine_logprobs is not None:
            fresh = micro_batch.mask & (micro_batch.weight_versions == step)[:, None]
            gap = (at_start - micro_batch.engine_logprobs).abs()
            self._gap = self._gap + gap.where(fresh, gap.new_zeros(())).sum()
            self._fresh = self._fresh + fresh.sum()

    def combined(self, worker: DeepSpeedWorker) -> Metrics:
        updates = len(self.gradient_norms)
        sums = {
            **self._sums,
            "loss": float(self._loss) / updates / worker.world_size,
            "entropy": float(self._entropy),
            "logprob_gap": float(self._gap),
            "fresh": float(self._fresh),
        }
        sums = dict(zip(sums, worker.all_reduce(list(sums.values())), strict=True))
        peaks = {**self._peaks, **self._seconds}
        peaks = dict(zip(peaks, worker.all_reduce(list(peaks.values()), maximum=True), strict=True))
        tokens = sums.pop("tokens")
        loss = sums.pop("loss")
        gap, fresh = sums.pop("logprob_gap"), sums.pop("fresh")
        means = {name: value / tokens for name, value in sums.items()}
        if fresh:
            means["logprob_gap"] = gap / fresh
        return {
            "loss": loss,
            "gradient_norm": sum(self.gradient_norms) / updates,
            **means,
            **peaks,
        }


def checkpoint_step(directory: str | Path) -> int:
    """Updates contained in a checkpoint folder written by this loop."""
    return int(json.loads((Path(directory) / STATE_FILE).read_text())["step"])
