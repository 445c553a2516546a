"""The learner's side of evaluation: hands judges to the evaluator, and hears what it says."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from actors.learner.answers import answer
from actors.learner.deepspeed_worker import DeepSpeedWorker
from actors.rollout.evaluator import EvaluationStatus
from stepwiser.run.model_exports import (
    candidates_of,
    drop_candidates,
    folder_to_fill,
    publish_model,
)


@dataclass(frozen=True)
class InlineEvaluationOptions:
    """When judges are evaluated; the evaluator itself knows how."""

    every: int
    """Steps."""
    shares_engines: bool
    """With the sampling: no new weights before an evaluation is done."""
    may_stop: bool
    """Whether the evaluator may end the training."""
    timeout_s: float = 3600.0
    """Longest wait for an evaluation; ranks wait for each other longer than this."""


class InlineEvaluation:
    """All ranks call every method in lockstep; only rank 0 speaks with the evaluator.

    One evaluation is under way at a time: it overlaps the steps that follow, and the next one, or
    with shared engines the next publication, waits for it.
    """

    def __init__(
        self,
        options: InlineEvaluationOptions | None,
        evaluator: Any,
        worker: DeepSpeedWorker,
        best: str,
        steps: int,
    ) -> None:
        """``options``: None for a training without evaluations. ``best``: path or address of the
        best judge, by which those lie that wait to be evaluated."""
        self._options = options
        self._evaluator = evaluator
        self._worker = worker
        self._best = best
        self._steps = steps
        self._call: Any = None
        self._stop = False
        self.waited_s = 0.0

    def begin(self, version: int) -> None:
        """Training goes on from these weights, which the engines have."""
        if self._options is None:
            return
        known = True
        if self._worker.rank == 0:
            # Of a learner that died; what is being evaluated just now ends with an error, unless
            # its engines have loaded it already.
            drop_candidates(self._best)
            status: EvaluationStatus = ray.get(
                self._evaluator.status.remote(version), timeout=self._options.timeout_s
            )
            known, self._stop = status.known, status.stop
        if self._agreed(not known):
            self.after_publish(version)

    def free_engines(self) -> None:
        """Before engines that are shared get other weights or sleep: wait for their answers."""
        if self._options is not None and self._options.shares_engines:
            self._settle()

    def after_publish(self, version: int) -> None:
        """The engines have these weights: evaluate them where they are due."""
        options = self._options
        if options is None or not version or (version % options.every and version != self._steps):
            return
        self._settle()
        # A name of its own, as a version may be trained again.
        place = f"{candidates_of(self._best)}/step-{version:06d}-{time.time_ns()}"
        folder = folder_to_fill(place)
        self._worker.export(folder)
        if self._worker.rank == 0:
            publish_model(folder, place)
            if folder != Path(place):
                shutil.rmtree(folder.parent)  # who wants it fetches it, and its name is used once
            self._call = self._evaluator.evaluate.remote(version, place)

    def stop(self) -> bool:
        """Whether training should end here; the same on every rank."""
        if self._options is None or not self._options.may_stop:
            return False
        if self._call is not None and ray.wait([self._call], timeout=0)[0]:
            self._take()
        return self._agreed(self._stop)

    def finish(self) -> None:
        """Wait for the last one."""
        if self._options is not None:
            self._take()
            if self._worker.rank == 0:
                drop_candidates(self._best)

    def _settle(self) -> None:
        """Wait for the answer, on every rank."""
        self._take()
        # The others wait here, as long as the worker group allows. In a collective of DeepSpeed it
        # would be torch's own limit, for its process groups are made without another one: 10
        # minutes on GPUs.
        torch.distributed.barrier()

    def _take(self) -> None:
        """Have rank 0 take in the answer."""
        if self._call is None:
            return
        assert self._options is not None
        began = time.monotonic()
        late = (
            f"an evaluation took over {self._options.timeout_s:.0f} s; look at its engines, or "
            "lower train.evaluate_processbench"
        )
        self._stop = answer(self._call, self._options.timeout_s, late).stop
        self._call = None
        self.waited_s += time.monotonic() - began

    def _agreed(self, mine: bool) -> bool:
        """What rank 0 says, the others saying False."""
        return bool(self._worker.all_reduce([float(mine)], maximum=True)[0])
