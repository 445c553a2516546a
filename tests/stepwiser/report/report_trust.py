"""The part of a made run's evaluation that is about trust, in the shapes that the stage writes."""

from __future__ import annotations

from typing import Any

from stepwiser.data.records import Judgement, StepItem
from stepwiser.evaluation.agreement import agreement
from stepwiser.evaluation.contamination import check
from stepwiser.evaluation.embedded_edits import analysis_follows, corrupt, repair
from stepwiser.evaluation.faithfulness import make_probes, questions_of, score_probes
from stepwiser.evaluation.scoring import score_judge
from stepwiser.tasks.transcripts import NEGATIVE, POSITIVE


def made_trust(
    items: list[StepItem], judges: dict[str, Any], rows: dict[str, list[Judgement]]
) -> dict[str, Any]:
    """Add to every judge what is asked about trust; returns what is true of all."""
    items = items[1:]  # the first is no problem of the embedded task
    probes = make_probes(items, 5, 0, corrupt, repair)
    beyond = {"6 operations": items[40:80]}
    for name, made in judges.items():
        mine = [row for row in rows[name] if row.item_id != "embedded-000"]
        made["agreement"] = agreement(items, mine)
        ids = {item.id for item in beyond["6 operations"]}
        of_set = [row for row in mine if row.item_id in ids]
        scored = {key: score_judge(value, of_set, 10) for key, value in beyond.items()}
        made |= {"beyond": scored, "more": {"other": scored["6 operations"]}, "average": None}
        answers = [
            Judgement(
                q.question_id, name, len(q.history), [1], "=1" in q.step, 1.0,
                f"recompute buys 1+1: 1+1+0=02; check 21 differ, so "
                f"{POSITIVE if '=1' in q.step else NEGATIVE}", 9, 0,
            )
            for q in questions_of(probes)
        ]  # fmt: skip
        made["faithfulness"] = score_probes(probes, answers, analysis_follows)
    sizes = {key: {"wrong": 20, "right": 20} for key in ("6 operations", "other")}
    training = [item.problem for item in items[:2]]
    return {
        "more": {"other": sizes["other"]},
        "beyond": {"6 operations": sizes["6 operations"]},
        "repairs": True,
        "contamination": check(training, {"embedded": [(i.id, i.problem) for i in items]}, 8)
        | {"not_compared": {"held out": "dataset away/x cannot be loaded"}},
    }
