"""Scores of the judges: before training, after, and the discriminative baseline."""

from __future__ import annotations

from typing import Any

from pipelines.evaluation.items import evaluation_items, valued_items
from pipelines.evaluation.judge_specs import JudgeSpec, judge_specs, make_judge
from pipelines.evaluation.judgements import JudgementCache
from pipelines.evaluation.trust import prepare_trust_checks
from pipelines.evaluation.trust_tables import print_trust
from pipelines.monitoring.formatting import number, plus_minus, titled_table
from pipelines.session.session import Session
from stepwiser.data.records import StepItem
from stepwiser.evaluation.scoring import calibration, score_judge
from stepwiser.judging.judges import Judge


def run(session: Session) -> dict[str, Any]:
    """Score every judge that exists; returns metrics by judge."""
    config = session.config.evaluate
    with session.stage("evaluate"):
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
        for spec in judge_specs(session):
            cache = _cache(session, spec)
            scored = _score(session, cache, items, values)
            metrics["judges"][spec.name] = scored | trust.score(session, cache, scored)
    session.store.write_metrics("evaluate", metrics)
    print_scores(session, metrics)
    print_trust(session.console, metrics)
    return metrics


def _cache(session: Session, spec: JudgeSpec) -> JudgementCache:
    """The contestant's judgements: those of an earlier start, or of engines with its weights."""
    temperature = session.config.evaluate.temperature

    def judge(votes: int) -> Judge:
        pool = session.pool(spec.model)
        return make_judge(session, spec, pool, votes=votes, temperature=temperature)

    return JudgementCache(session, spec.name, spec.model, f"{spec.kind} {spec.force}", judge)


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
