"""The configuration of a run: one YAML file a scenario, every field described in its section.

In: a file and `key=value` overrides. Out: a checked, frozen `RunConfig`, or a UserError that names
the key, the value and the nearest key that exists. Also here: names that keys had before
(`aliases`), what can never work and is refused at the start (`impossible`), what is a folder and
what an address (`addresses`), and the share of the work that one of several clusters takes
(`annotation.Shard`). Importable without torch. What a run needs of a cluster is computed from it in
`run/resource_plan`.
"""

from stepwiser.config.data import DataConfig
from stepwiser.config.loading import difference, flatten, load_config, parse_config
from stepwiser.config.models import EngineConfig, RunConfig
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
