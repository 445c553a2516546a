"""The model card states data, rule, steps, scores, base model, versions and use."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stepwiser.config import load_config
from stepwiser.config.annotation import RuleConfig
from stepwiser.errors import UserError
from stepwiser.run.model_card import Training, model_card, read_judge_settings, rule_in_words
from tests.support.paths import ROOT

TRAINING = Training(
    version=30,
    base_model="org/name",
    start="org/name at 1234 (chunk-tuned)",
    prompts={"train": 1234, "heldout": 56},
    curve=[{"reward": 0.25}, *({"reward": 0.5} for _ in range(8)), {"reward": 0.875}, {"step": 1}],
    evaluation={
        "version": 30,
        "heldout_balanced": 0.9125,
        "heldout_positive": float("nan"),
        "processbench_f1": 0.8004,
    },
    packages={"torch": "2.13.0", "ray": "2.60.0"},
)


def test_everything_a_reader_needs_is_there():
    card = model_card(load_config(ROOT / "configs" / "embedded.yaml"), TRAINING)
    for words in (
        "**base model**: org/name at 1234 (chunk-tuned)",
        "**steps**: 30 of 50",
        "**train prompts**: 1,234",
        "Rel-Effective, α = 0.8, n = 4",
        "valued below 0.35 are left out",
        "128 prompts × 8 samples",
        "learning rate 0.0003 (linear), clip 0.2 / 0.28",
        "**mean reward, first → last tenth**: 0.250 → 0.875",
        "| held-out labels, balanced accuracy | 0.912 |",
        "| ProcessBench F1 (official), embedded | 0.800 |",
        "- **ray**: 2.60.0\n- **torch**: 2.13.0",
        "{problem}\n{earlier steps}judge {new step}",
    ):
        assert words in card, words
    assert "held-out labels, Positive" not in card, "what is undefined is left out"
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "org/name" and front["library_name"] == "transformers"


@pytest.mark.parametrize("config", ["embedded", "gsm8k"])
def test_a_folder_says_how_its_judge_is_asked(config: str, tmp_path: Path):
    settings = load_config(ROOT / "configs" / f"{config}.yaml")
    assert read_judge_settings(tmp_path) is None
    (tmp_path / "README.md").write_text(model_card(settings, TRAINING))
    found = read_judge_settings(tmp_path)
    assert found is not None
    assert found.prompts == settings.judge_prompts
    assert found.label_rule == rule_in_words(settings.label)
    assert (found.max_tokens, found.version) == (settings.judge_max_tokens, 30)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Some other model\n")
    assert read_judge_settings(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nstepwiser: {version: x}\n---\n")
    with pytest.raises(UserError, match="section stepwiser cannot be read"):
        read_judge_settings(tmp_path)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("verdict", "**reward**: 1 for a verdict that equals the step's label, else 0\n"),
        ("verdict_only", "-1 for any other word"),
        ("outcome", "labels of steps are not used"),
    ],
)
def test_it_says_what_was_rewarded(reward: str, words: str):
    file = ROOT / "configs" / "embedded.yaml"
    assert words in model_card(load_config(file, [f"train.reward={reward}"]), TRAINING)


def test_a_card_without_scores_says_so_and_names_no_place_of_a_file():
    config = load_config(ROOT / "configs" / "gsm8k.yaml")
    data = config.data.model_copy(update={"source": "/some/where/train.jsonl"})
    card = model_card(config.model_copy(update={"data": data}), Training(1, "some/model"))
    assert "were not evaluated" in card and "not recorded" in card
    assert "/some/where" not in card and "train.jsonl" in card


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"rule": "abs_q"}, "above 0"),
        ({"rule": "rel_ratio", "gamma": 0.7}, "γ = 0.7"),
        ({"rule": "rel_effective", "alpha": 0.4}, "α = 0.4"),
    ],
)
def test_rules_come_with_their_parameters(rule, words):
    assert words in rule_in_words(RuleConfig(**rule))


def test_it_says_how_an_adapter_was_merged():
    file = ROOT / "configs" / "embedded.yaml"
    card = model_card(load_config(file, ["learner.lora.rank=8"]), TRAINING)
    assert "**LoRA**: rank 8, alpha 32, beside all linear layers" in card
    assert "merged into the weights in float32" in card and "`adapter/`" in card
    assert "LoRA" not in model_card(load_config(file), TRAINING)
