"""Data sets by name: where they are on the Hub, and which columns hold problem and answer.

`data.source=gsm8k` reads the set itself; `data.like=gsm8k` reads a file of one's own with the same
columns. What a configuration says otherwise than by default goes before what stands here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stepwiser.config import DataConfig
from stepwiser.data.files import is_table


@dataclass(frozen=True)
class Preset:
    """How one known data set is laid out; fields are named like the keys of section `data`."""

    source: str
    problem_column: str
    answer_column: str
    subset: str | None = None
    split: str = "train"
    answer_delimiter: str | None = None


PRESETS: dict[str, Preset] = {
    "gsm8k": Preset("openai/gsm8k", "question", "answer", "main", answer_delimiter="####"),
    "math": Preset("DigitalLearningGmbH/MATH-lighteval", "problem", "solution"),
    "numina-math": Preset("AI-MO/NuminaMath-CoT", "problem", "solution"),
    "deepmath": Preset("zwhe99/DeepMath-103K", "question", "final_answer"),
    "openr1-math": Preset("open-r1/OpenR1-Math-220k", "problem", "answer", "default"),
    "aime": Preset("di-zhang-fdu/AIME_1983_2024", "Question", "Answer"),
}
"""By the names that `data.source` and `data.like` take. Whole solutions give the answer in their
last box. AIME's file on the Hub is a CSV one."""

COLUMNS = ("problem_column", "answer_column", "answer_delimiter")


def with_preset(config: DataConfig) -> DataConfig:
    """The configuration with everything filled in that the known name stands for.

    A file or a saved data set of this machine that is called so goes first.
    """
    if config.like is not None:
        return _filled(config, PRESETS[config.like], COLUMNS)
    preset = PRESETS.get(config.source)
    if preset is None or is_table(Path(config.source)):
        return config
    named = tuple(field.name for field in fields(Preset))
    return _filled(config, preset, named)


def _filled(config: DataConfig, preset: Preset, names: tuple[str, ...]) -> DataConfig:
    defaults = {name: DataConfig.model_fields[name].default for name in names}
    changes: dict[str, Any] = {
        name: getattr(preset, name)
        for name in names
        if name == "source" or getattr(config, name) == defaults[name]
    }
    return config.model_copy(update=changes)
