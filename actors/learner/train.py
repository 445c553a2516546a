"""The learner as a driver sees it: blocking calls that start Ray Train and give results back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from actors.learner.grpo_loop import KIND, GRPOTrainOptions, grpo_worker, steps_trained
from actors.learner.worker_group import run_worker_group
from actors.rollout.evaluator import EVALUATION
from stepwiser.run.metrics_file import Metrics, read_metrics, write_lost
from stepwiser.run.model_exports import link_model, read_evaluation

__all__ = ["GRPOTrainOptions", "TrainResult", "train_grpo"]


@dataclass(frozen=True)
class TrainResult:
    """A finished RL run."""

    model_dir: str
    """Of the judge that is kept."""
    kept: Literal["last", "best"]
    """Which one that is: the last also where no evaluation has given a best."""
    steps: int
    """Steps trained, of this run and the runs it continued."""
    metrics: tuple[Metrics, ...]
    """One entry a step; that of a step whose figures are lost says so (`metrics_file.LOST`)."""
    evaluations: tuple[Metrics, ...]
    """One entry an evaluation."""


def train_grpo(
    options: GRPOTrainOptions,
    collector: Any,
    on_metrics: Callable[[Metrics], None] | None = None,
    evaluator: Any = None,
    describe: Callable[[str, int], None] | None = None,
) -> TrainResult:
    """Train the judge; blocks. A run of the same name and path is continued, not started anew.

    ``collector`` is a Ray actor handle with these methods:

    - ``next_batch(step)`` → ExperienceBatch, an ObjectRef to one, or None when there is no more.
      Every rank asks; the same step must give the same batch until a publish of an equal or lower
      version says that the learner has gone back.
    - ``publish(version, source, timeout)``: put weights into the engines and return figures (a dict
      of numbers) for the metrics. ``source`` is a list of ObjectRefs to safetensors bytes, which
      together hold every weight once, or the TransferSpec of a transfer (`weight_transfer`). Called
      with the starting version before the first fetch.

    Beside these ``keep_copy(version, refs)`` with the blobs of what a transfer has brought, and
    ``sleep()`` before the learner needs the engines' memory (`colocated`).

    ``evaluator``: an `Evaluator` actor, where ``options.evaluation`` asks for evaluations.
    ``on_metrics`` gets the lines of both, told apart by their ``kind``. ``describe(place,
    version)`` completes the last and the best judge before one of them takes its final name.
    """
    run_worker_group(
        grpo_worker,
        {"options": options, "collector": collector, "evaluator": evaluator},
        options.patient_group,
        options.metrics_path,
        (KIND, EVALUATION),
        on_metrics,
    )
    path, name = options.metrics_path, options.group.name
    steps = steps_trained(path, name)
    write_lost(path, KIND, name, steps)
    metrics = tuple(line for line in read_metrics(path, KIND, name) if line["step"] < steps)
    last, best = options.last_dir, options.best_dir
    figures = read_evaluation(best)
    if describe is not None:
        describe(last, steps)
        if figures is not None:
            describe(best, int(figures["version"]))
    chosen: Literal["last", "best"] = options.keep if figures is not None else "last"
    link_model(best if chosen == "best" else last, options.output_dir)
    return TrainResult(
        model_dir=options.output_dir,
        kept=chosen,
        steps=steps,
        metrics=metrics,
        evaluations=tuple(read_metrics(path, EVALUATION, name)),
    )
