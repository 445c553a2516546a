"""The learner as a driver sees it: blocking calls that start Ray Train and give results back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actors.grpo_loop import KIND, GRPOTrainOptions, grpo_worker
from actors.worker_group import Metrics, read_metrics, run_worker_group

__all__ = ["GRPOTrainOptions", "TrainResult", "train_grpo"]


@dataclass(frozen=True)
class TrainResult:
    """A finished RL run."""

    model_dir: str
    steps: int
    """Steps trained, of this run and the runs it continued."""
    metrics: tuple[Metrics, ...]
    """One entry a step."""


def train_grpo(
    options: GRPOTrainOptions,
    collector: Any,
    on_metrics: Callable[[Metrics], None] | None = None,
) -> TrainResult:
    """Train the judge; blocks. A run of the same name and path is continued, not started anew.

    ``collector`` is a Ray actor handle with these methods:

    - ``next_batch(step)`` → ExperienceBatch, an ObjectRef to one, or None when there is no more.
      Every rank asks; the same step must give the same batch until a publish of an equal or lower
      version says that the learner has gone back.
    - ``publish(version, source, timeout)``: put weights into the engines and return figures (a dict
      of numbers) for the metrics. ``source`` is a list of ObjectRefs to safetensors bytes, which
      together hold every weight once, or the Ticket of a transfer (`weight_transfer`). Called with
      the starting version before the first fetch.

    Beside these ``keep_copy(version, refs)`` with the blobs of what a ticket has brought, and
    ``sleep()`` before the learner needs the engines' memory (`colocated`).
    """
    run_worker_group(
        grpo_worker,
        {"options": options, "collector": collector},
        options.group,
        options.metrics_path,
        KIND,
        on_metrics,
    )
    metrics = tuple(read_metrics(options.metrics_path, KIND, options.group.name))
    steps = metrics[-1]["step"] + 1 if metrics else 0
    return TrainResult(model_dir=options.output_dir, steps=steps, metrics=metrics)
