"""Names in the configuration: those of what they choose, and those that keys had before."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from stepwiser.annotation.label_rules import DEFINITIONS, LabelRule
from stepwiser.annotation.stopping import StoppingRule
from stepwiser.config import load_config, parse_config
from stepwiser.config.aliases import RENAMED, RenamedKeyWarning
from stepwiser.config.annotation import AnnotateConfig, RuleConfig
from stepwiser.config.base import KnownChecker
from stepwiser.config.loading import valid_keys
from stepwiser.config.models import ScoreReduction, SolveMethod, TrackerName
from stepwiser.config.training import TrainConfig
from stepwiser.data.verifiers import CHECKERS
from stepwiser.errors import UserError
from stepwiser.run.store import RunStore
from tests.support.paths import ROOT

EMBEDDED = ROOT / "configs" / "embedded.yaml"
VALUES = {
    "segment.segmentations": 3,
    "solve.samples_per_chunk": 4,
    "train.max_sampling_rounds": 7,
    "train.dynamic_sampling": True,
}


def _choices(model: Any, field: str) -> set[str]:
    return set(get_args(model.model_fields[field].annotation))


def test_every_choice_of_the_configuration_is_made_by_somebody() -> None:
    from pipelines.evaluation.solving import METHODS
    from pipelines.monitoring.trackers import TRACKERS
    from stepwiser.search.voting import REDUCTIONS
    from stepwiser.training.rewards import REWARDS

    assert _choices(RuleConfig, "rule") == {str(rule) for rule in LabelRule} == set(DEFINITIONS)
    assert _choices(AnnotateConfig, "stopping") == {str(rule) for rule in StoppingRule}
    assert _choices(TrainConfig, "reward") == set(REWARDS)
    assert set(get_args(TrackerName)) == set(TRACKERS)
    assert set(get_args(KnownChecker)) == set(CHECKERS)
    assert set(get_args(SolveMethod)) == set(METHODS)
    assert set(get_args(ScoreReduction)) == set(REDUCTIONS)


def test_what_a_rule_reads_is_in_the_configuration_and_in_its_words() -> None:
    for definition in DEFINITIONS.values():
        assert set(definition.parameters) <= RuleConfig.model_fields.keys()
        named = set(re.findall(r"{(\w+)", definition.formula))
        assert named == set(definition.parameters)


def test_every_old_name_stands_for_a_key_that_exists() -> None:
    keys = set(valid_keys())
    assert set(RENAMED.values()) == VALUES.keys() <= keys
    assert not RENAMED.keys() & keys


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_works_and_says_the_new_one(tmp_path: Path, old: str, new: str) -> None:
    section, _, leaf = old.partition(".")
    raw = yaml.safe_load(EMBEDDED.read_text())
    raw.setdefault(section, {})[leaf] = VALUES[new]
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump(raw))
    expected = load_config(EMBEDDED, [f"{new}={VALUES[new]}"])
    with pytest.warns(RenamedKeyWarning, match=f"{old} is called {new} now"):
        assert load_config(file) == expected
    with pytest.warns(RenamedKeyWarning, match=f"{old} is called {new} now"):
        assert load_config(EMBEDDED, [f"{old}={VALUES[new]}"]) == expected


def test_both_names_of_a_key_are_one_too_many(tmp_path: Path) -> None:
    raw = {"train": {"max_draws": 2, "max_sampling_rounds": 3}}
    with (
        pytest.warns(RenamedKeyWarning),
        pytest.raises(UserError, match=r"two names of one setting: keep train\.max_sampling"),
    ):
        parse_config(raw)


def test_a_run_directory_with_old_names_is_read_in_silence(tmp_path: Path) -> None:
    config = load_config(EMBEDDED, ["train.max_sampling_rounds=7"])
    RunStore(tmp_path).open(config)
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().replace("max_sampling_rounds:", "max_draws:"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert RunStore(tmp_path).config() == config
        RunStore(tmp_path).open(config)
