"""Configuration of a run; see `models` for every field."""

from stepwiser.config.loading import difference, flatten, load_config, parse_config
from stepwiser.config.models import (
    DataConfig,
    EngineConfig,
    LearnerConfig,
    RunConfig,
    SFTConfig,
)
from stepwiser.config.prompts import PromptConfig

__all__ = [
    "DataConfig",
    "EngineConfig",
    "LearnerConfig",
    "PromptConfig",
    "RunConfig",
    "SFTConfig",
    "difference",
    "flatten",
    "load_config",
    "parse_config",
]
