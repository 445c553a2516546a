"""The page of all keys is whole and true; a key that does not exist is met with one that does."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from stepwiser.config import RunConfig, load_config
from stepwiser.config.loading import nearest_keys, valid_keys
from stepwiser.config.reference import (
    Setting,
    accepts,
    example_of,
    page,
    scenario_values,
    settings,
)
from stepwiser.errors import UserError
from tests.support.paths import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SETTINGS = [*settings()]


def test_the_page_is_that_of_the_models() -> None:
    written = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    assert page() == written, (
        "configs/README.md is stale: python -m stepwiser.config.reference > configs/README.md"
    )


def test_no_key_is_left_out() -> None:
    lists = ("evaluate.more", "evaluate.judges", "annotate.rules", "label.agree_with")
    assert {one.key.replace("[]", "") for one in SETTINGS} == {
        key for key in valid_keys() if key in lists or not _is_section(key)
    }


def _is_section(key: str) -> bool:
    return any(other.startswith(f"{key}.") for other in valid_keys())


def test_every_key_says_what_it_means_and_every_number_its_unit() -> None:
    silent = [one.key for one in SETTINGS if not one.meaning.endswith(".")]
    assert not silent, f"no description, or no sentence: {silent}"
    numbers = ("whole number", "number")
    without = [one.key for one in SETTINGS if one.type.startswith(numbers) and not one.units]
    assert not without, f"numbers of what? {without}"
    wrong = [one.key for one in SETTINGS if one.units and "number" not in one.type]
    assert not wrong, f"units of what is no number: {wrong}"


def test_every_example_is_accepted_by_a_scenario(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.jinja").write_text("{{ messages }}")
    scenarios = scenario_values()
    wrong = {}
    for one in SETTINGS:
        example = example_of(one, scenarios)
        words = shlex.split(example)
        assert words, f"{one.key} has no example: give its Field one"
        if reason := _refusal(one, words):
            wrong[example] = reason
    assert not wrong, wrong


def _refusal(setting: Setting, words: list[str]) -> str:
    """Why every scenario refuses these overrides, or is not changed by them; empty if one is."""
    reason = ""
    for path in (None, *CONFIGS):
        try:
            changed = load_config(path, words)
        except UserError as error:
            reason = str(error)
            continue
        if changed != load_config(path):
            return ""
        reason = reason or "nothing changes"
    return reason


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("trian", ["train"]),
        ("trian.steps", ["train.steps"]),
        ("trian.stpes", ["train.steps"]),
        ("train.step", ["train.steps"]),
        ("train.max_model_len", ["engine.max_model_len"]),
        ("max_model_len", ["engine.max_model_len"]),
        ("train.kv_cache", ["engine.kv_cache_mb"]),
        ("label.rollouts", ["annotate.rollouts"]),
        (
            "learning_rate",
            [
                "train.learning_rate",
                "segment.sft.learning_rate",
                "discriminative.sft.learning_rate",
            ],
        ),
        ("segment.learning_rate", ["segment.sft.learning_rate"]),
        ("segment.sft.lerning_rate", ["segment.sft.learning_rate"]),
        ("annotate.rules.0.gama", ["annotate.rules.gamma"]),
        ("evaluate.more.1.naem", ["evaluate.more.name"]),
        ("zzz", []),
    ],
)
def test_the_nearest_keys(key: str, nearest: list[str]) -> None:
    assert nearest_keys(key)[: len(nearest) or None] == nearest


def test_a_key_is_unknown_where_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {steps: 3, max_model_len: 9}\nannotate: {rules: [{rul: abs_q}]}\n")
    with pytest.raises(UserError) as error:
        load_config(file, ["train.step=4"])
    for words in (
        f"{file}: unknown key train.max_model_len; did you mean engine.max_model_len?",
        "unknown key annotate.rules.0.rul; did you mean annotate.rules.rule?",
    ):
        assert words in str(error.value)
    assert "override" not in str(error.value)
    with pytest.raises(UserError, match=r"^override 'train\.step=4': unknown key train\.step; did"):
        load_config(CONFIGS[0], ["train.step=4"])
    with pytest.raises(UserError, match=r"trian\.steps; did you mean train\.steps\?"):
        load_config(CONFIGS[0], ["trian={steps: 4}"])


def test_what_texts_may_name() -> None:
    for word in (
        *("train.steps", "train.steps=20", "train.live_*", "annotate.…", "train.steps=N"),
        *("run_dir=RUN", "prompts.template_variables.anything=1", "segment.attempts"),
        "annotate.stopping=exact",
    ):
        accepts(word)
    for word in ("train.step", "train.steps=0", "train.lively_*", "annotate.stopping=soon"):
        with pytest.raises(UserError):
            accepts(word)
    assert len(SETTINGS) > len(RunConfig.model_fields)
