"""Labels read by a critic (`label.critic`): which it contradicts, and how often it agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipelines.evaluation.judge_specs import JudgeSpec, asking
from pipelines.evaluation.judgements import JudgementCache
from pipelines.session.session import Session
from stepwiser.evaluation.critic_agreement import contradicted, critic_agreement
from stepwiser.evaluation.faithfulness import Question

TABLE = "judgements/labels"


def criticise(
    session: Session, prompts: Sequence[Mapping[str, Any]]
) -> tuple[frozenset[str], dict[str, Any]]:
    """Ids of the prompts whose label the critic of section `label` contradicts, and figures.

    Args:
        prompts: rows of judge prompts (`records.JudgePrompt`) that are to be used.

    What it said is kept, and another rule's labels of the same chunks do not ask it again.
    """
    settings = session.config.label.critic.judge
    model = settings.model if settings.kind == "endpoint" else session.resolve(settings.model)
    spec = JudgeSpec(settings.name, model, settings.kind, settings=settings)
    rows = sorted(prompts, key=lambda row: str(row["prompt_id"]))
    questions = [_question(row) for row in rows]
    with asking(session, spec) as judge:
        cache = JudgementCache(session, spec.name, spec.weights, spec.asked, judge)
        votes = session.config.label.critic.votes
        said = cache.questions(TABLE, cache.unit, questions, votes)
        cost = cache.cost(TABLE, cache.unit, said)
    verdicts = {judgement.item_id: judgement.verdict for judgement in said}
    labels = {row["prompt_id"]: bool(row["label"]) for row in rows}
    found = critic_agreement(
        spec.name,
        list(labels.values()),
        [verdicts[name] for name in labels],
        [row["problem_id"] for row in rows],
    )
    left_out = contradicted(labels, verdicts)
    figures = asdict(found) | {"left_out": len(left_out), "tokens": cost.generated_tokens}
    return left_out, figures | {"failed": sum(judgement.failed for judgement in said)}


def _question(row: Mapping[str, Any]) -> Question:
    return Question(row["prompt_id"], row["question"], tuple(row["history"]), row["chunk"])
