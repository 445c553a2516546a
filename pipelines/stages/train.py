"""The judge, by GRPO or as one of its baselines, all from the same labels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isnan, nan
from typing import Any

from actors.learner.train import TrainResult, train_grpo
from actors.pinned import Pinned
from actors.pool.pool import EnginePool
from actors.rollout.collector import CollectorOptions, ExperienceCollector
from actors.rollout.prompt_source import LiveOptions
from pipelines.annotation.live import LiveAnnotation, live_options, reading_metrics
from pipelines.annotation.work import write_metrics
from pipelines.evaluation.inline_evaluation import (
    check_labels,
    evaluator,
    inline_evaluation_items,
    inline_evaluation_options,
    is_evaluation,
    log_evaluation,
    write_card,
)
from pipelines.monitoring.formatting import facts_table, known
from pipelines.monitoring.prometheus import LearnerMetrics
from pipelines.monitoring.trackers import Trackers
from pipelines.session.session import Session
from pipelines.stages import label
from pipelines.training.baselines import (
    DISCRIMINATIVE,
    JUDGE,
    judge_start,
    solutions_prompts,
    train_discriminative,
    train_rejection,
    warm_start,
)
from pipelines.training.learner_options import adapter_start, grpo_options
from stepwiser.data.records import JudgePrompt
from stepwiser.run.metrics_file import LOST
from stepwiser.run.model_exports import is_score, read_evaluation
from stepwiser.run.resource_plan import engine_range
from stepwiser.run.tables import load_judge_prompts
from stepwiser.run.units import finished_units


def run(session: Session) -> dict[str, Any]:
    """Trains what `train.method` says; an interrupted run goes on from its last checkpoint."""
    config = session.config
    metrics = session.store.read_metrics("train") or {}
    alone = config.train.method == "discriminative"
    wanted = {JUDGE: not alone, DISCRIMINATIVE: alone or config.discriminative.enabled}
    # A kill may come between a model and its figures. One without the other is not finished: going
    # on from the last step costs no training.
    figures = {JUDGE: "steps", DISCRIMINATIVE: "discriminative"}
    missing = []
    for name in (name for name, asked in wanted.items() if asked):
        if not session.store.has_model(name) or figures[name] not in metrics:
            missing.append(name)
    settled = not config.train.live or session.store.read_metrics("label") is not None
    if not missing and settled:
        session.console.print("train: already done, kept")
        return metrics
    if JUDGE in missing:
        with session.stage("train", resumes=True) as usage:
            ours = train_rejection if config.train.method == "rs_ft" else _train_judge
            metrics |= ours(session)
            usage.trained_tokens += metrics["trained_tokens"]
        session.store.write_metrics("train", metrics)
    if config.train.live:
        _settle_live(session)
    if DISCRIMINATIVE in missing:
        with session.stage("train", resumes=True) as usage:
            metrics["discriminative"] = train_discriminative(session)
            usage.trained_tokens += metrics["discriminative"]["trained_tokens"]
    session.store.write_metrics("train", metrics)
    if wanted[JUDGE]:
        _print(session, metrics)
    return metrics


def _train_judge(session: Session) -> dict[str, Any]:
    start, warm = (
        warm_start(session) if session.config.train.warm_start else (judge_start(session), [])
    )
    adapter_start(session)  # one that is none is refused before engines start
    items = inline_evaluation_items(session)
    # Engines of the main slot make way for named ones.
    slot = "judge" if session.config.train.evaluator_engines else "main"
    if not session.config.train.live:
        train = solutions_prompts(session) or load_judge_prompts(session.store, "train")
        heldout = load_judge_prompts(session.store, "heldout")
        check_labels(session, len(heldout), len(items))
        pool = session.pool(start, slot=slot, adapters=True)
        sizes = {"train": len(train), "heldout": len(heldout)}
        with (
            _collector(session, pool, start, train, heldout) as collector,
            evaluator(session, JUDGE, start, pool, collector, items) as reviewer,
        ):
            result = _run_grpo(session, start, collector, reviewer, sizes)
        return _figures(result, warm) | {"prompts": sizes}
    live = live_options(session)
    fewest, most = engine_range(session.config)
    judge = session.pool(start, slot="judge", adapters=True)
    policy = session.pool(session.policy_dir(), slot="policy", count=fewest, maximum=most)
    with (
        _collector(session, judge, start, [], [], live) as collector,
        LiveAnnotation(session, policy, collector),
        evaluator(session, JUDGE, start, judge, collector, items) as reviewer,
    ):
        result = _run_grpo(session, start, collector, reviewer, {})
    return _figures(result, warm) | {"live": reading_metrics(session)}


def _settle_live(session: Session) -> None:
    """Leave what the stages annotate and label leave: their figures, and balanced labels."""
    for slot in ("policy", "judge"):
        session.release(slot)
    metrics = write_metrics(session, finished_units(session.store))
    if metrics["rejects"]:
        path = session.store.write_json("rejects/annotate.json", metrics["rejects"])
        session.console.print(
            f"[yellow]{len(metrics['rejects'])} problems could not be annotated; their reasons are "
            f"in {path}"
        )
    label.run(session)


@contextlib.contextmanager
def _collector(
    session: Session,
    pool: EnginePool,
    start: str,
    train: list[JudgePrompt],
    heldout: list[JudgePrompt],
    live: LiveOptions | None = None,
) -> Iterator[Any]:
    """The collector, for as long as the block lasts."""
    config = session.config
    options = CollectorOptions(
        model_dir=start,
        prompts=config.judge_prompts,
        train=config.train,
        max_response_tokens=min(config.train.max_response_tokens, config.judge_max_tokens),
        context_length=min(config.engine.max_model_len, config.learner.max_tokens_per_microbatch),
        seed=config.seed,
        live=live,
        balanced=config.label.balance,
        trust_remote_code=config.trust_remote_code,
    )
    arguments = Pinned(pool.client()), Pinned(train), Pinned(heldout)
    collector = ExperienceCollector.remote(options, *arguments)
    try:
        yield collector
    finally:
        # Not retried, or Ray would say on the terminal that this task failed.
        collector.__ray_terminate__.options(max_task_retries=0).remote()


def _run_grpo(
    session: Session, start: str, collector: Any, reviewer: Any, prompts: Mapping[str, int]
) -> TrainResult:
    """Train to the end, and describe the judges that came of it."""
    with (
        session.progress("train judge", session.config.train.steps, "steps") as bar,
        Trackers(session.config, session.store, JUDGE, session.console) as logger,
        LearnerMetrics(session.config.name, session.config.train.steps) as gauges,
    ):

        def on_metrics(row: dict[str, Any]) -> None:
            if is_evaluation(row):
                log_evaluation(logger, row)
                return
            gauges.update(row)
            note = "its figures are lost with a process that ended"
            if "reward" in row:
                note = (
                    f"reward {row['reward']:.3f}  + {row['accuracy_positive']:.2f}"
                    f"  - {row['accuracy_negative']:.2f}  {row['response_length']:.0f} tokens"
                )
                if row["share_no_verdict"]:
                    note += f"  {1 - row['share_no_verdict']:.0%} with a verdict"
            bar.update(row["step"] + 1, note=note)
            logger.log(row)

        options = replace(
            grpo_options(session, JUDGE, start, logger.run_id),
            evaluation=inline_evaluation_options(session),
        )
        return train_grpo(
            options,
            collector,
            on_metrics,
            reviewer,
            lambda place, version: write_card(session, JUDGE, place, version, prompts),
        )


def _figures(result: TrainResult, warm: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``warm``: the rounds before GRPO."""
    rows = result.metrics
    lost = sum(LOST in row for row in rows)
    window = max(1, len(rows) // 10)
    return {
        "steps": rows[-1]["step"] + 1 if rows else 0,
        "reward_first": _mean(rows[:window], "reward"),
        "reward_last": _mean(rows[-window:], "reward"),
        "accuracy_positive_last": _mean(rows[-window:], "accuracy_positive"),
        "accuracy_negative_last": _mean(rows[-window:], "accuracy_negative"),
        "no_verdict_first": warm[0]["share_no_verdict"] if warm else _no_verdict(rows[:window]),
        "no_verdict_last": _no_verdict(rows[-window:]),
        "warm_start": list(warm),
        "response_length_first": _mean(rows[:window], "response_length"),
        "response_length_last": _mean(rows[-window:], "response_length"),
        "logprob_gap": _mean(rows, "logprob_gap"),
        # The first step waits for engines and learner to warm up.
        "engine_idle": _mean(rows[1:], "engine_idle"),
        "learner_idle": _mean(rows[1:], "learner_idle"),
        "trained_tokens": sum(
            row.get("prompt_tokens", 0) + row.get("response_tokens", 0) for row in rows
        ),
        "steps_lost": lost,
        "kept": result.kept,
        "best": read_evaluation(f"{result.model_dir}-best"),
        "evaluations": len(result.evaluations),
    }


def _no_verdict(rows: Any) -> float:
    return _mean(rows, "share_no_verdict")


def _mean(rows: Any, key: str) -> float:
    values = [row[key] for row in rows if key in row]
    return sum(values) / len(values) if values else float("nan")


def _print(session: Session, metrics: dict[str, Any]) -> None:
    part = "round" if "rounds" in metrics else "tenth"
    table = facts_table([("steps", metrics["steps"])], "Training")
    for name, key in (
        (f"reward, first {part}", "reward_first"),
        (f"reward, last {part}", "reward_last"),
        (f"verdict accuracy on positives, last {part}", "accuracy_positive_last"),
        (f"verdict accuracy on negatives, last {part}", "accuracy_negative_last"),
    ):
        table.add_row(name, f"{metrics[key]:.3f}")
    silent = [metrics.get(f"no_verdict_{when}", nan) for when in ("first", "last")]
    if any(share > 0 for share in silent):
        begin = "warm start's first round" if metrics.get("warm_start") else f"first {part}"
        shown = [known(None if isnan(share) else share, "{:.1%}") for share in silent]
        table.add_row(f"answers without a verdict, {begin} → last {part}", " → ".join(shown))
    table.add_row(
        f"response length, first → last {part}",
        f"{metrics['response_length_first']:.1f} → {metrics['response_length_last']:.1f} tokens",
    )
    if best := metrics.get("best"):
        scores = [
            f"{name} {best[key]:.3f}"
            for name, key in (("held-out", "heldout_balanced"), ("F1", "processbench_f1"))
            if is_score(best.get(key))
        ]
        table.add_row("best judge", f"step {best['version']}, {', '.join(scores)}")
        table.add_row("used from here on", f"the {metrics['kept']} one")
    if "live" in metrics:
        live = metrics["live"]
        table.add_row(
            "prompts read", f"{live['prompts_read']}, each {live['reads_mean']:.1f} times"
        )
        table.add_row("rollouts made for each that was read", f"{live['made_over_read']:.2f}")
    if not isnan(metrics.get("learner_idle", nan)):
        table.add_row(
            "idle: engines, learner", f"{metrics['engine_idle']:.0%}, {metrics['learner_idle']:.0%}"
        )
    if "logprob_gap" in metrics:
        table.add_row("engine/learner log-prob gap", f"{metrics['logprob_gap']:.1e}")
    session.console.print(table)
