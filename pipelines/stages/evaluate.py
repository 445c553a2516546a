"""Scores of the judges: before training, after, the discriminative baseline, and any others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from pipelines.evaluation.benchmark_table import BenchmarkTable
from pipelines.evaluation.items import evaluation_items, file_items, valued_items
from pipelines.evaluation.judge_specs import JudgeSpec, asking, compared_judges, judge_specs
from pipelines.evaluation.judgements import JudgementCache
from pipelines.evaluation.trust import TrustChecks, prepare_trust_checks
from pipelines.evaluation.trust_tables import print_trust
from pipelines.monitoring.formatting import number, plus_minus, titled_table
from pipelines.session.session import Session
from stepwiser.data.records import StepItem
from stepwiser.evaluation.scoring import calibration, score_judge
from stepwiser.evaluation.thresholds import (
    ChosenThreshold,
    choose_threshold,
    refuse_shared_problems,
)
from stepwiser.judging.judges import Judge
from stepwiser.judging.scoring_judge import ScoringJudge


def run(session: Session) -> dict[str, Any]:
    """Score every judge that exists; returns metrics by judge."""
    config = session.config.evaluate
    with session.stage("evaluate") as usage:
        items = evaluation_items(session)
        values = valued_items(session)
        metrics: dict[str, Any] = {
            "set": config.name,
            "items": {
                "wrong": sum(item.label != -1 for item in items),
                "right": sum(item.label == -1 for item in items),
            },
            "judges": {},
        }
        trust = prepare_trust_checks(session, items)
        metrics |= trust.facts(session)
        choosing = _threshold_items(session, trust, values[0])
        table = BenchmarkTable(session, trust, values[0])
        for spec in (*judge_specs(session), *compared_judges(session)):
            with _cache(session, spec, choosing) as (cache, threshold):
                scored = _score(session, cache, items, values)
                if threshold is not None:
                    scored["threshold"] = asdict(threshold)
                metrics["judges"][spec.name] = scored | trust.score(session, cache, scored)
                table.add(cache)
                if spec.settings is not None and spec.settings.scores_steps:
                    usage.prompt_tokens += cache.prompt_tokens
        metrics["benchmarks"] = table.write()
    session.store.write_metrics("evaluate", metrics)
    print_scores(session, metrics)
    print_trust(session.console, metrics)
    table.print()
    return metrics


def _threshold_items(
    session: Session, trust: TrustChecks, valued: Sequence[StepItem]
) -> list[StepItem]:
    """The set that thresholds are chosen on, where one is to be chosen.

    Raises UserError where a set that is scored has a problem of it.
    """
    config = session.config.evaluate
    chosen = config.threshold_set
    if chosen is None or all(judge.threshold != "chosen" for judge in config.judges):
        return []
    items = file_items(session, chosen.name, chosen.source, chosen.limit)
    scored = {config.name: trust.items, **trust.more, **trust.beyond, "held-out chunks": valued}
    refuse_shared_problems(chosen.name, items, scored)
    return items


@contextlib.contextmanager
def _cache(
    session: Session, spec: JudgeSpec, choosing: Sequence[StepItem]
) -> Iterator[tuple[JudgementCache, ChosenThreshold | None]]:
    """The contestant's judgements: those of an earlier start, or of what holds its weights.

    With the threshold that was chosen for it, where one was to be.
    """
    settings = spec.settings
    prices = (settings.input_price, settings.output_price) if settings else (0.0, 0.0)
    if settings is None or settings.threshold != "chosen":
        with asking(session, spec) as judge:
            yield JudgementCache(session, spec.name, spec.weights, spec.asked, judge, prices), None
        return
    split = session.config.evaluate.threshold_set
    assert split is not None
    with asking(session, spec) as judge:
        cache = JudgementCache(session, spec.name, spec.weights, spec.asked, judge)
        rows = cache.items("judgements/threshold", cache.unit, choosing, 1)
        threshold = choose_threshold(choosing, rows, split.name)

        def decided(votes: int) -> Judge:
            scorer = judge(votes)
            assert isinstance(scorer, ScoringJudge)
            return replace(scorer, threshold=threshold.value)

        asked = replace(spec, threshold=threshold.value).asked
        yield JudgementCache(session, spec.name, spec.weights, asked, decided), threshold


def _score(
    session: Session,
    cache: JudgementCache,
    items: list[StepItem],
    valued: tuple[list[StepItem], dict[tuple[str, int], float]],
) -> dict[str, Any]:
    config = session.config.evaluate
    rows = cache.items("judgements", cache.unit, items, config.votes)
    extra = cache.items("judgements", f"{cache.unit}-valued", valued[0], config.votes)
    result = score_judge(items, rows, config.bins)
    pairs = [(r.score, valued[1][r.item_id, r.step_index]) for r in extra if r.score is not None]
    result["calibration_values"] = calibration(
        [score for score, _ in pairs], [value for _, value in pairs], config.bins
    )
    return result


def print_scores(session: Session, metrics: dict[str, Any]) -> None:
    table = titled_table(
        f"ProcessBench format, {metrics['set']}: {metrics['items']['wrong']} wrong, "
        f"{metrics['items']['right']} right solutions",
        *("judge", "F1 (official)", "wrong", "right", "F1 (final answer)", "Maj@k", "ECE"),
        "no verdict",
    )
    for name, row in metrics["judges"].items():
        official, final = row["single"]["official"], row["single"]["by_final_answer"]
        majority = row["majority"]["official"]
        table.add_row(
            name,
            plus_minus(official["f1"], official["f1_standard_error"]),
            number(official["error_accuracy"]),
            number(official["correct_accuracy"]),
            number(final["f1"]),
            f"{number(majority['f1'])} (k={row['votes']})" if row["votes"] > 1 else "-",
            number(row["calibration"] and row["calibration"]["ece"]),
            f"{row['missing_share']:.1%}",
        )
    session.console.print(table)
    for reason in sorted(
        {
            reason
            for row in metrics["judges"].values()
            if (reason := row["single"]["official"].get("undefined_because"))
        }
    ):
        session.console.print(f"[yellow]no F1: the set has {reason}")
