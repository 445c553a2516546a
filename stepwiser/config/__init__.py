"""Configuration of a run; see `models` for every field."""

from stepwiser.config.loading import difference, flatten, load_config, parse_config
from stepwiser.config.models import (
    DataConfig,
    EngineConfig,
    RunConfig,
)
from stepwiser.config.prompts import PromptConfig
from stepwiser.config.training import LearnerConfig, SFTConfig

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
