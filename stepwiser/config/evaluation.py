"""Settings of the stage that scores judges."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from stepwiser.config.addresses import LocalPlace
from stepwiser.config.base import Judgements, Number, Positive, Section, Unit
from stepwiser.config.judges import JudgeConfig

Items = Annotated[Positive, Unit("items")]
Solutions = Annotated[Positive, Unit("solutions")]


class StepSetConfig(Section):
    """One more set of solutions to score on."""

    source: LocalPlace = Field(
        description="A file with labelled steps, as `evaluate.source`.",
        examples=["evaluate.more='[{source: processbench/math.json, name: math, limit: 400}]'"],
    )
    name: str = Field(
        description="What tables call this set.",
        examples=["evaluate.more='[{source: processbench/math.json, name: math}]'"],
    )
    limit: Items | None = Field(
        None,
        description="Items that are used, evenly spaced; all if unset.",
        examples=["evaluate.more='[{source: processbench/math.json, name: math, limit: 400}]'"],
    )


class ThresholdSetConfig(Section):
    """Labelled solutions that thresholds are chosen on, to no problem of a set that is scored."""

    source: LocalPlace = Field(
        description="A file with labelled steps, as `evaluate.source`.",
        examples=["evaluate.threshold_set.source=math.json evaluate.threshold_set.name=math"],
    )
    name: str = Field(
        description="What messages call this set.",
        examples=["evaluate.threshold_set.name=math evaluate.threshold_set.source=math.json"],
    )
    limit: Items | None = Field(
        None,
        description="Items that are used, evenly spaced; all if unset.",
        examples=[
            "evaluate.threshold_set.limit=400 evaluate.threshold_set.source=math.json "
            "evaluate.threshold_set.name=math"
        ],
    )


class EvaluateConfig(Section):
    """ProcessBench and calibration (paper section 4)."""

    source: LocalPlace = Field(
        "embedded",
        description="`embedded`, or a file with labelled steps: ProcessBench's format, PRM800K's, "
        "Math-Shepherd's, or rows with steps and a label of each.",
    )
    skip_bad_rows: bool = Field(
        False,
        description="Leave items out that cannot be read, count them and list them in rejects/; "
        "else the first one ends the start (`--skip-bad-rows`).",
    )
    name: str = Field("embedded", description="What tables call this set.")
    wrong: Solutions = Field(200, description="Wrong solutions wanted of the embedded set.")
    right: Solutions = Field(200, description="Right solutions wanted of the embedded set.")
    limit: Items | None = Field(
        None,
        description="Items of a file that are used, evenly spaced; all if unset.",
        examples=[100],
    )
    votes: Judgements = Field(8, description="Judgements of a step: Maj@votes and their mean.")
    temperature: Number = Field(
        1.0, ge=0, description="Sampling temperature of the judges.", examples=[0.7]
    )
    calibration_trajectories: Annotated[int, Unit("trajectories")] = Field(
        100, ge=0, description="Held-out annotated trajectories for calibration against values."
    )
    bins: Annotated[Positive, Unit("bins")] = Field(
        10, description="Bins of the score in the reliability tables.", examples=[20]
    )
    forced_prefix: str = Field(
        "",
        description="Also score the start made to begin so: what a style alone is worth.",
    )
    more: tuple[StepSetConfig, ...] = Field(
        (), description="Further files to score on; tables have each and the average of all files."
    )
    judges: tuple[JudgeConfig, ...] = Field(
        (),
        description="Judges from elsewhere that are scored beside the run's own.",
        examples=["evaluate.judges='[{name: qwen, kind: qwen_prm, model: Qwen2.5-Math-PRM-7B}]'"],
    )
    threshold_set: ThresholdSetConfig | None = Field(
        None, description="Where thresholds are chosen (`threshold: chosen` of a judge)."
    )
    faithfulness: Annotated[int, Unit("steps of either kind")] = Field(
        100,
        ge=0,
        description="Right steps that are made wrong, and wrong ones made right, to see whether "
        "verdict and analysis follow; 0 leaves it out.",
    )
    beyond: Annotated[int, Unit("solutions of a range")] = Field(
        100,
        ge=0,
        description="Written solutions to problems within the range of training, and of each range "
        "beyond it (embedded task only); 0 leaves them out.",
    )
    contamination_ngram: Annotated[Positive, Unit("words")] = Field(
        13, description="Words of a run that an evaluation and a training problem may not share."
    )

    @model_validator(mode="after")
    def _sets_have_names(self) -> EvaluateConfig:
        names = [self.name, *(one.name for one in self.more)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"evaluate.more: the name {twice[0]!r} is given to two sets: change one"
            )
        return self

    @model_validator(mode="after")
    def _judges_can_be_told_apart(self) -> EvaluateConfig:
        names = [one.name for one in self.judges]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"evaluate.judges: the name {twice[0]!r} is given to two judges: change one"
            )
        return self

    @model_validator(mode="after")
    def _thresholds_are_not_chosen_on_what_is_reported(self) -> EvaluateConfig:
        choosing = [one.name for one in self.judges if one.threshold == "chosen"]
        if choosing and self.threshold_set is None:
            raise ValueError(
                f"evaluate.judges: the threshold of {choosing[0]} is to be chosen, and there is no "
                "evaluate.threshold_set: give one, or a number"
            )
        reported = {self.source, *(one.source for one in self.more)}
        if self.threshold_set is not None and self.threshold_set.source in reported:
            raise ValueError(
                f"evaluate.threshold_set: {self.threshold_set.source} is a set that is scored, and "
                "a threshold chosen on it would make its own score: give another file"
            )
        return self
