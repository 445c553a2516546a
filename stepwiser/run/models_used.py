"""Which models stages load, and what of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepwiser.config import RunConfig
from stepwiser.run.resource_plan import STAGES_WITH_ENGINES

NAMELESS = {"report", "serve", "judge"}
"""Stages that read only what the run directory holds, or what serve.model names."""


JUDGES = "evaluate.judges"


@dataclass(frozen=True)
class ModelUse:
    """A model of the configuration."""

    key: str
    """Where it is named."""
    model: str
    weights: bool
    """Loaded; else only its tokenizer is."""
    discriminates: bool = False
    """Asked for verdicts of one token."""
    writes: bool = True
    """It writes text, in a chat; else it scores steps, and is loaded in another way."""


def models_used(config: RunConfig, stages: Sequence[str]) -> list[ModelUse]:
    """The models that these stages load, besides those that the run has made itself."""
    asked = set(stages) - NAMELESS
    if not asked:
        return []
    chunks = config.prompts.steps == "chunks"
    start = config.train.method == "discriminative" or config.discriminative.enabled
    discriminative = "train" in asked and start
    base = "segment" in asked if chunks else bool(asked.intersection(STAGES_WITH_ENGINES))
    own = config.judge_model is None
    used = [ModelUse("policy_model", config.policy_model, base, discriminative and own)]
    if config.judge_model is not None and asked & {"train", "evaluate", "solve"}:
        used.append(ModelUse("judge_model", config.judge_model, True, discriminative))
    segment = config.segment
    if "segment" in asked and chunks and segment.segmenter == "engine" and segment.segmenter_model:
        used.append(ModelUse("segment.segmenter_model", segment.segmenter_model, True))
    critic = config.label.critic
    if "label" in asked and critic.model is not None and critic.on_engines:
        used.append(ModelUse("label.critic.model", critic.model, True))
    if "evaluate" in asked:
        used += [
            ModelUse(judge_key(judge.name), judge.model, True, writes=not judge.scores_steps)
            for judge in config.evaluate.judges
            if judge.kind != "endpoint"
        ]
    return used


def judge_key(name: str) -> str:
    """Where the model of a judge from elsewhere is named: by the judge, whose place may change."""
    return f"{JUDGES}.{name}.model"
