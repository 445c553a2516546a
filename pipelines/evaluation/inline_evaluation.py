"""Evaluation of the judge while it trains, and the cards of the judges that come of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.learner.inline_evaluation import InlineEvaluationOptions
from actors.pinned import Pinned
from actors.pool.pool import EnginePool
from actors.rollout.evaluator import EVALUATION, Evaluator, EvaluatorOptions, fitting_items
from pipelines.evaluation.items import evaluation_items
from pipelines.monitoring.trackers import Trackers
from pipelines.session.session import Session
from stepwiser.data.records import StepItem
from stepwiser.errors import UserError
from stepwiser.prompting.hub.reference import hub_model
from stepwiser.run.metrics_file import Metrics, read_metrics
from stepwiser.run.model_card import Training, model_card
from stepwiser.run.model_exports import read_evaluation, write_model_file
from stepwiser.run.store import CURVE, environment

CARD = "README.md"


def inline_evaluation_options(session: Session) -> InlineEvaluationOptions | None:
    """When the learner hands a judge over; None where nothing is evaluated on the way."""
    train = session.config.train
    if train.evaluate_every is None:
        return None
    return InlineEvaluationOptions(
        every=train.evaluate_every,
        shares_engines=train.evaluator_engines == 0,
        may_stop=train.early_stop_patience is not None,
    )


def inline_evaluation_items(session: Session) -> list[StepItem]:
    """As many items of the set of `evaluate` as training asks for, evenly spaced.

    Before other engines are held: the embedded set may have to be sampled first.
    """
    train = session.config.train
    if train.evaluate_every is None or train.evaluate_processbench is None:
        return []
    items = evaluation_items(session)
    count = min(train.evaluate_processbench, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def check_labels(session: Session, heldout: int, items: int) -> None:
    """Raise UserError where the best judge is asked for and nothing tells which that is."""
    train = session.config.train
    if (train.keep == "best" or train.early_stop_patience) and not (heldout or items):
        raise UserError(
            "train.keep=best and train.early_stop_patience go by held-out labels, and there are "
            f"none with label.heldout_share={session.config.label.heldout_share:g}: raise it, or "
            "set train.evaluate_processbench"
        )


@contextlib.contextmanager
def evaluator(
    session: Session,
    name: str,
    start: str,
    pool: EnginePool,
    collector: Any,
    items: list[StepItem],
) -> Iterator[Any]:
    """The evaluator, for as long as the block lasts; None where nothing is evaluated.

    ``pool``: the engines that sample, which it shares unless it has its own. Raises UserError when
    no item fits their context.
    """
    config = session.config
    train = config.train
    if train.evaluate_every is None:
        yield None
        return
    fitting = _fitting(session, start, items)
    own = train.evaluator_engines
    if own:
        pool = session.pool(start, slot="evaluator", count=own, adapters=True)
    options = EvaluatorOptions(
        name=name,
        model_dir=start,
        prompts=config.judge_prompts,
        metrics_path=session.store.called(CURVE),
        best_dir=session.store.model(f"{name}-best"),
        max_tokens=min(train.max_response_tokens, config.judge_max_tokens),
        temperature=train.temperature,
        best_by=train.best_by,
        patience=train.early_stop_patience,
        own_engines=bool(own),
        items_too_long=len(items) - len(fitting),
        trust_remote_code=config.trust_remote_code,
    )
    actor = Evaluator.remote(options, Pinned(pool.client()), Pinned(collector), Pinned(fitting))
    try:
        yield actor
    finally:
        # Not retried, or Ray would say on the terminal that this task failed.
        actor.__ray_terminate__.options(max_task_retries=0).remote()


def _fitting(session: Session, start: str, items: list[StepItem]) -> list[StepItem]:
    """The items that can be asked; says which ones are left out."""
    length = session.config.engine.max_model_len
    fitting = fitting_items(session.prompts(start), items, length)
    kept = {item.id for item in fitting}
    left_out = [item.id for item in items if item.id not in kept]
    if left_out and not fitting:
        raise UserError(
            f"none of the {len(items)} items of train.evaluate_processbench fits "
            f"engine.max_model_len={length}: raise it, or set train.evaluate_processbench=null"
        )
    if left_out:
        rest = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        session.console.print(
            f"train: {len(left_out)} of {len(items)} items do not fit engine.max_model_len="
            f"{length} and are left out of the evaluations: {', '.join(left_out[:5])}{rest}",
            style="yellow",
            markup=False,
        )
    return fitting


def is_evaluation(row: Metrics) -> bool:
    return row.get("kind") == EVALUATION


def log_evaluation(tracker: Trackers, row: Metrics) -> None:
    """To the trackers, at the step whose weights these are: training has gone on meanwhile."""
    for prefix in ("heldout_", "processbench_"):
        tracker.log_late(row, prefix, axis="evaluated_step")


def write_card(
    session: Session, name: str, place: str, version: int, prompts: Mapping[str, int]
) -> None:
    """The model card of a judge after ``version`` steps."""
    path = session.store.called(CURVE)
    curve = read_metrics(path, "train", name)
    lines = read_metrics(path, EVALUATION, name)
    evaluated = read_evaluation(place)
    training = Training(
        version=version,
        **_base(session),
        prompts=prompts,
        curve=[row for row in curve if row["step"] < version],
        evaluation=evaluated or next((r for r in lines if r.get("version") == version), None),
        packages=environment()["packages"],
    )
    write_model_file(place, CARD, model_card(session.config, training))


def _base(session: Session) -> dict[str, str]:
    """The start's name, of a directory only the last part; and what else it is."""
    config = session.config
    start = session.resolve(config.judge_model or config.policy_model)
    hub = hub_model(start)
    if hub is not None:
        name, words = hub.name, f"{hub.name} at {hub.revision}"
    else:
        named = config.judge_model or config.policy_model
        name = words = Path(named).name if Path(named).is_absolute() else named
    if config.judge_model is None and config.prompts.steps == "chunks":
        words += " (chunk-tuned)"
    return {"base_model": name, "start": words}
