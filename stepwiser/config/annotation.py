"""Settings of annotation, of its shards, and of the labels that are made of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stepwiser.config.addresses import LocalPlace
from stepwiser.config.base import (
    Chunks,
    Engines,
    Fraction,
    Number,
    Positive,
    Problems,
    Responses,
    Rollouts,
    Section,
    Tokens,
    Unit,
    require_at_least,
    require_at_most,
)
from stepwiser.config.judges import CriticConfig


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`: it owns every unit whose position in the plan is index mod count."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n`, counted from 0.

        Raises:
            ValueError: anything but two whole numbers with 0 <= i < n.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match:
            raise ValueError(f"shard {text!r} is not of the form i/n, for example 0/4")
        index, count = int(match[1]), int(match[2])
        if index >= count:
            raise ValueError(
                f"shard {text!r} does not exist: the {count} shards are counted from 0"
                + (f" to {count - 1}" if count else ", and there is at least one")
            )
        return cls(index, count)

    def owns(self, position: int) -> bool:
        """Whether the unit at this position of the plan is this shard's."""
        return position % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class RuleConfig(Section):
    """A label rule with its parameters (paper section 3.2)."""

    rule: Literal["abs_q", "rel_effective", "rel_ratio"] = Field(
        "rel_effective",
        description="What makes a chunk Positive: its value (Abs-Q), its value and how it changed "
        "it (Rel-Effective), or by which factor (Rel-Ratio).",
        examples=["rel_ratio"],
    )
    alpha: Number = Field(
        0.8, gt=0, description="Weight of the value's change (Rel-Effective).", examples=[0.4]
    )
    gamma: Number = Field(
        0.7, gt=0, description="Threshold of the value's ratio (Rel-Ratio).", examples=[0.8]
    )
    best_of: Annotated[Positive, Unit("rollouts")] = Field(
        4, description="n of the best-of-n policy (Rel-Effective).", examples=[8]
    )
    minimum_previous_value: Fraction = Field(
        0.0, description="Skip chunks that follow a prefix valued below this.", examples=[0.1]
    )


class AnnotateConfig(Section):
    """Monte-Carlo values of every chunk (paper section 3.2)."""

    source: LocalPlace | None = Field(
        None,
        description="File of trajectories to value instead of sampled ones: ProcessBench's format "
        "(problem, steps), whole solutions (problem, answer, solution), or labelled steps of "
        "PRM800K, Math-Shepherd and their like.",
        examples=["processbench/gsm8k.json"],
    )
    responses: Responses = Field(
        16, description="Responses per problem for the difficulty filter.", examples=[8]
    )
    trajectories_per_problem: Responses = Field(
        16, description="Responses of a kept problem whose chunks are valued."
    )
    rollouts: Rollouts = Field(
        16, description="M: completions of every chunk prefix.", examples=[8]
    )
    stopping: Literal["fixed", "exact", "sequential"] = Field(
        "fixed",
        description="When a prefix has had enough: after all M; when no label can change any more; "
        "or when one would change with probability at most `error_bound`.",
    )
    wave: Rollouts = Field(
        4,
        description="Most completions asked for before looking again (exact, sequential).",
        examples=[2],
    )
    error_bound: Annotated[float, Unit("probability")] = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Largest probability of a wrong label (sequential).",
        examples=[0.1],
    )
    max_rollouts: Rollouts | None = Field(
        None,
        description="Completions that a prefix may get, and that its label is about (sequential); "
        "else `rollouts`.",
        examples=["annotate.max_rollouts=64 annotate.stopping=sequential"],
    )
    rules: tuple[RuleConfig, ...] = Field(
        (),
        description="Labels that will be asked for (exact, sequential); else that of section "
        "`label`. Each further rule costs rollouts, Rel-Ratio most of all.",
        examples=["annotate.rules='[{rule: rel_effective, alpha: 0.4}, {rule: abs_q}]'"],
    )
    temperature: Number = Field(
        1.0, gt=0, description="Sampling temperature of responses and rollouts.", examples=[0.7]
    )
    max_tokens: Tokens = Field(
        8192,
        description="Longest response, a prefix and its rollout together; of `select` too.",
    )
    max_chunks: Chunks = Field(64, description="Longer responses are dropped and counted.")
    stop_below: Fraction = Field(
        0.0, description="Chunks after one valued below this are not annotated; 0 annotates all."
    )
    repeat_share: Fraction = Field(
        0.0,
        description="Share of the problems whose chunks are valued a second time, with rollouts of "
        "their own, to see how far labels repeat (`label`). It costs as much more.",
        examples=[0.1],
    )
    min_engines: Engines | None = Field(
        None,
        description="Engines of this stage before it starts; it has all GPUs to itself, unless "
        "it is live (train.live). Else engine.count.",
    )
    max_engines: Engines | None = Field(
        None,
        description="Engines that may join it as nodes come, also those an autoscaler adds; else "
        "as many as it starts with.",
        examples=[8],
    )
    problems_per_unit: Problems = Field(
        8,
        description="Problems of one unit of work, which is done once and appears whole.",
        examples=[4],
    )

    @model_validator(mode="after")
    def _engines_fit(self) -> AnnotateConfig:
        fewest, most = self.min_engines, self.max_engines
        if fewest is not None and most is not None:
            require_at_least("annotate.max_engines", most, "annotate.min_engines", fewest)
        return self

    @model_validator(mode="after")
    def _waves_fit(self) -> AnnotateConfig:
        planned = ("annotate.rollouts", self.rollouts)
        if self.stopping != "fixed":
            require_at_most("annotate.wave", self.wave, *planned)
        if self.max_rollouts is not None and self.stopping != "sequential":
            raise ValueError(
                f"annotate.max_rollouts={self.max_rollouts} needs annotate.stopping=sequential, "
                f"not {self.stopping}: leave it out and set annotate.rollouts"
            )
        if self.max_rollouts is not None:
            require_at_least("annotate.max_rollouts", self.max_rollouts, *planned)
        return self


class LabelConfig(RuleConfig):
    """From values to balanced judge prompts (paper sections 3.2 and 3.3)."""

    max_prompt_tokens: Tokens = Field(3096, description="Longer judge prompts are dropped.")
    balance: bool = Field(True, description="Downsample the majority class to one half.")
    heldout_share: Fraction = Field(0.05, description="Share of problems kept for validation.")
    agree_with: tuple[RuleConfig, ...] = Field(
        (),
        description="Further rules that have to say the same: chunks on which they differ are left "
        "out. Where labels end, `minimum_previous_value` of this section says for all.",
        examples=["label.agree_with='[{rule: abs_q}, {rule: rel_ratio}]'"],
    )
    critic: CriticConfig = Field(default_factory=CriticConfig)
    chunks_per_step: Chunks = Field(
        1,
        description="Chunks judged as one step; more than 1 for steps that ignore the chunks.",
        examples=[2],
    )
