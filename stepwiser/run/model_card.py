"""The model card of a trained judge: where it comes from, how good it is, how it is asked.

A judge answers only to the prompt it was trained with, and Positive means what its label rule says:
both are in the front matter too, so that a folder, or a name on the Hub, is all that `serve` needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepwiser.annotation.label_rules import LabelRule
from stepwiser.config import RunConfig
from stepwiser.config.annotation import RuleConfig
from stepwiser.config.prompts import PromptConfig
from stepwiser.errors import UserError
from stepwiser.run.model_exports import is_score
from stepwiser.training.rewards import REWARDS

CARD = "README.md"
SECTION = "stepwiser"
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


class JudgeSettings(BaseModel):
    """How a judge is asked."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompts: PromptConfig
    label_rule: str
    max_tokens: int = Field(ge=1, description="Longest analysis and verdict.")
    temperature: float = Field(ge=0, description="At which it was trained.")
    version: int = Field(ge=0, description="Steps trained.")

    def front_matter(self) -> dict[str, Any]:
        """For the card; prompts that are the defaults are written too, as those may change."""
        return {SECTION: self.model_dump(mode="json", exclude_none=True)}


def read_judge_settings(folder: Path) -> JudgeSettings | None:
    """Of a model's folder; None where it has no card of this program.

    Raises UserError for a card that cannot be read.
    """
    path = folder / CARD
    if not path.is_file():
        return None
    found = _FRONT_MATTER.match(path.read_text(encoding="utf-8"))
    try:
        front = yaml.safe_load(found[1]) if found else None
        section = front.get(SECTION) if isinstance(front, dict) else None
        return None if section is None else JudgeSettings.model_validate(section)
    except (yaml.YAMLError, ValidationError) as error:
        raise UserError(
            f"model card {path}: its section {SECTION} cannot be read: {error}"
        ) from error


@dataclass(frozen=True)
class Training:
    """What a card states beside the configuration."""

    version: int
    """Steps trained, of `train.steps`."""
    base_model: str
    """Name of the model that training started from; no path of a machine, and no revision."""
    start: str = ""
    """The same in words, with the commit where it has one and what it was tuned for."""
    prompts: Mapping[str, int] = field(default_factory=dict)
    """Prompts by split; empty where annotation went on beside the training."""
    curve: Sequence[Mapping[str, Any]] = ()
    """Lines of the training curve, one a step."""
    evaluation: Mapping[str, Any] | None = None
    """Scores of these weights; None where they were not evaluated."""
    packages: Mapping[str, str] = field(default_factory=dict)


def model_card(config: RunConfig, training: Training) -> str:
    """Markdown with the front matter of the Hugging Face Hub."""
    train = config.train
    settings = JudgeSettings(
        prompts=config.judge_prompts,
        label_rule=rule_in_words(config.label),
        max_tokens=config.judge_max_tokens,
        temperature=train.temperature,
        version=training.version,
    )
    asked = yaml.safe_dump(settings.front_matter(), sort_keys=False, allow_unicode=True)
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        f"base_model: {training.base_model}\n"
        f"tags: [stepwiser, process-reward-model, generative-judge, grpo]\n{asked}---",
        f"# Generative judge of reasoning steps, run “{config.name}”",
        "Given a problem, the steps so far and a new step, this model reasons about the step and "
        "ends with `\\boxed{Positive}` or `\\boxed{Negative}`. Trained by the method of StepWiser "
        "(Xiong et al., [arXiv 2508.19229](https://arxiv.org/abs/2508.19229)).",
        "## Data",
        _list(
            [
                ("problems", _source(config)),
                ("steps", "self-segmented chunks" if _chunks(config) else "paragraphs"),
                (
                    "values",
                    f"{config.annotate.rollouts} Monte-Carlo completions of every prefix at "
                    f"temperature {config.annotate.temperature:g}, stopping `"
                    f"{config.annotate.stopping}`",
                ),
                ("labels", rule_in_words(config.label)),
                (
                    "classes",
                    "balanced to one half each" if config.label.balance else "as they came",
                ),
                *((f"{split} prompts", f"{n:,}") for split, n in training.prompts.items()),
            ]
        ),
        "## Training",
        _list(
            [
                ("base model", training.start or training.base_model),
                ("reward", REWARDS[train.reward].words),
                ("steps", f"{training.version:,} of {train.steps:,}"),
                (
                    "a step",
                    f"{train.prompts_per_step:,} prompts × {train.group_size} samples, mini-batches"
                    f" of {train.minibatch_prompts:,} prompts, answers of at most "
                    f"{train.max_response_tokens:,} tokens",
                ),
                (
                    "optimizer",
                    f"GRPO, learning rate {train.learning_rate:g} ({train.schedule}), clip "
                    f"{train.clip_low:g} / {train.clip_high:g}, {train.aggregation}, KL "
                    f"{train.kl_coefficient:g}, temperature {train.temperature:g}",
                ),
                ("precision", f"{config.learner.precision}, ZeRO-{config.learner.zero_stage}"),
                *_lora(config),
                ("seed", str(config.seed)),
                *_rewards(training),
            ]
        ),
        "## Scores",
        _scores(config, training),
        "## Use",
        "With this project, `stepwiser serve` answers over HTTP, and the stages `solve` and "
        "`select` use the judge. With any other engine, send one user message through "
        f"{_template(config)}, sample at temperature {train.temperature:g}, and read the last "
        "boxed verdict:",
        f"```text\n{_asked(config)}\n```",
        *(
            [f"```jinja\n{config.prompts.chat_template}\n```"]
            if config.prompts.chat_template
            else []
        ),
        f"Earlier steps are joined by `{config.prompts.history_separator!r}`; before the first "
        f"step stands `{config.prompts.empty_history!r}`. Several samples vote.",
        "## Versions",
        _list(sorted(training.packages.items())) or "not recorded",
    ]
    return "\n\n".join(parts) + "\n"


def rule_in_words(rule: RuleConfig) -> str:
    """The label rule with its parameters (paper section 3.2)."""
    definition = LabelRule(rule.rule).definition
    formula = definition.formula.format_map(rule.model_dump())
    words = f"{definition.title}{', ' if definition.parameters else ': '}{formula}"
    if rule.minimum_previous_value:
        words += f"; steps after a prefix valued below {rule.minimum_previous_value:g} are left out"
    return words


def _scores(config: RunConfig, training: Training) -> str:
    figures = training.evaluation or {}
    names = {
        "heldout_balanced": "held-out labels, balanced accuracy",
        "heldout_positive": "held-out labels, Positive",
        "heldout_negative": "held-out labels, Negative",
        "processbench_f1": f"ProcessBench F1 (official), {config.evaluate.name}",
    }
    rows = [
        f"| {words} | {figures[key]:.3f} |"
        for key, words in names.items()
        if is_score(figures.get(key))
    ]
    if not rows:
        return "These weights were not evaluated while training went on."
    return "\n".join(
        [
            "| of these weights, one sample a step | |",
            "|---|---|",
            *rows,
            "",
            "The labels are Monte-Carlo estimates, not ground truth.",
        ]
    )


def _rewards(training: Training) -> list[tuple[str, str]]:
    rewards = [row["reward"] for row in training.curve if is_score(row.get("reward"))]
    if not rewards:
        return []
    window = max(1, len(rewards) // 10)
    first, last = sum(rewards[:window]) / window, sum(rewards[-window:]) / window
    return [("mean reward, first → last tenth", f"{first:.3f} → {last:.3f}")]


def _lora(config: RunConfig) -> list[tuple[str, str]]:
    lora = config.learner.lora
    if not lora.rank:
        return []
    targets = lora.target_modules
    layers = "all linear layers" if isinstance(targets, str) else ", ".join(targets)
    return [
        (
            "LoRA",
            f"rank {lora.rank}, alpha {lora.alpha:g}, beside {layers}. The adapter was merged into "
            "the weights in float32, and those are kept so: loaded in bfloat16, its smallest "
            "updates are rounded away. `adapter/` holds it alone, for the base model",
        )
    ]


def _source(config: RunConfig) -> str:
    data = config.data
    if data.source == "embedded":
        return f"the embedded arithmetic task, seed {data.seed}, {data.limit:,} problems"
    # Of a file only the name: where it lay is nobody's business.
    name = data.source if not data.source.endswith((".jsonl", ".json", ".parquet")) else ""
    name = name or data.source.rsplit("/", 1)[-1]
    subset = f", {data.subset}" if data.subset else ""
    return f"{name}{subset}, split {data.split}, up to {data.limit:,} problems"


def _chunks(config: RunConfig) -> bool:
    return config.prompts.steps == "chunks"


def _asked(config: RunConfig) -> str:
    """The judge's message with its fields named, after the system message if there is one."""
    asked = config.judge_prompts.judge.format(
        problem="{problem}", history="{earlier steps}", chunk="{new step}"
    )
    return f"(system) {config.prompts.system}\n\n(user) {asked}" if config.prompts.system else asked


def _template(config: RunConfig) -> str:
    """Which chat template an engine has to use, and how."""
    prompts = config.prompts
    own = "the chat template below" if prompts.chat_template else "the model's own chat template"
    variables = ", ".join(f"{name}={value!r}" for name, value in prompts.template_variables.items())
    return f"{own} with {variables}" if variables else own


def _list(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- **{name}**: {value}" for name, value in rows)
