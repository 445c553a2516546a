"""The figures of one training step on one rank, summed over its micro-batches."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from actors.learner.batches import ResponseBatch
from actors.learner.deepspeed_worker import DeepSpeedWorker
from stepwiser.run.metrics_file import Metrics


class StepMetrics:
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

    def add(self, loss: Tensor, metrics: dict[str, float], entropies: Tensor) -> None:
        self._loss = self._loss + loss.detach()
        tokens = metrics["tokens"]
        for name, value in metrics.items():
            if name.endswith("_max"):
                self._peaks[name] = max(self._peaks[name], value)
            elif name not in ("tokens", "sequences"):
                self._sums[name] += value * tokens
        self._sums["tokens"] += tokens
        if tokens:
            self._entropy = self._entropy + entropies.sum()

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
