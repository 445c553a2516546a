"""Arms into configurations, and figures into differences, by hand."""

import json
import xml.dom.minidom
from typing import Any

import pytest

from stepwiser.config import RunConfig, load_config, parse_config
from stepwiser.config import difference as config_difference
from stepwiser.errors import UserError
from stepwiser.report.ablation import Ablation, markdown, reports
from stepwiser.training.ablation import arm_config, arms_of, difference, seed_config, summarize, t95
from tests.support.paths import ROOT

SHIPPED = ROOT / "configs" / "ablate-embedded.yaml"


def _config(arms: dict[str, Any], **ablate: Any) -> RunConfig:
    return parse_config(
        {"run_dir": "runs/x", "seed": 5, "data": {"seed": 1}, "ablate": {"arms": arms, **ablate}}
    )


def test_an_arm_is_the_recipe_with_its_changes() -> None:
    arms = {"full": {}, "bare": {"train.reward": "verdict_only", "train": {"steps": 7}}}
    config = _config(arms)
    full, bare = arms_of(config)
    assert bare.changes == {"train.reward": "verdict_only", "train.steps": 7}
    ours, theirs = arm_config(config, bare, 6), arm_config(config, full, 6)
    assert config_difference(theirs, ours) == {
        "train.reward": ("verdict", "verdict_only"),
        "train.steps": (800, 7),
    }
    assert (ours.run_dir, theirs.run_dir) == ("runs/x/seed-6/bare", "runs/x/seed-6/full")
    assert ours.ablate.arms == {}


def test_a_seed_has_problems_of_its_own_that_its_arms_share() -> None:
    config = _config({"full": {}})
    first, second = seed_config(config, 5), seed_config(config, 6)
    assert (first.seed, first.data.seed) == (5, 1)
    assert (second.seed, second.data.seed) == (6, 1001)
    assert second.evaluation_data.seed == first.evaluation_data.seed + 1000
    assert second.run_dir == "runs/x/seed-6/shared"
    assert config_difference(second, arm_config(config, arms_of(config)[0], 6)) == {}


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({}, "train"),
        ({"train.clip_high": 0.2, "rejection.rounds": 1}, "train"),
        ({"prompts.judge": "{problem} {history} {chunk}"}, "train"),
        ({"train.steps": 3, "label.rule": "abs_q"}, "label"),
        ({"annotate.rollouts": 4, "label.rule": "abs_q"}, "annotate"),
        ({"prompts": {"steps": "paragraphs"}}, "segment"),
        ({"data.limit": 10}, "segment"),
    ],
)
def test_an_arm_shares_what_its_changes_leave_alone(changes: dict[str, Any], stage: str) -> None:
    assert arms_of(_config({"full": changes}))[0].own_stage == stage


@pytest.mark.parametrize(
    ("arms", "only", "words"),
    [
        ({}, (), "no arms"),
        ({"full": {}, "a": {"train.stepz": 3}}, (), "ablate.arms.a.*train.stepz.*train.steps"),
        ({"full": {}, "a": {"trian": {"steps": 3}}}, ("full",), "did you mean train"),
        ({"full": {}, "a": {"train.steps": "many"}}, (), "ablate.arms.a: train.steps"),
        ({"full": {}, "a": {"train.steps.x": 3}}, (), "steps is a value"),
        ({"full": {}, "a": {"seed": 3}}, (), "seed .*cannot be changed"),
        ({"full": {}, "rs-ft": {}}, ("rsft",), "did you mean rs-ft"),
        ({"complete": {}}, (), "full is none of ablate.arms .*ablate.reference"),
        ({"full": {}, "a/b": {}}, (), "a/b.*folder"),
        ({"full": {}, "shared": {}}, (), "neither shared"),
    ],
)
def test_mistakes_show_before_anything_runs(
    arms: dict[str, Any], only: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        arms_of(_config(arms), only)


def test_the_shipped_arms_are_the_papers() -> None:
    arms = {arm.name: arm for arm in arms_of(load_config(SHIPPED))}
    assert list(arms)[:5] == [
        "full", "discriminative-sft", "rs-ft", "discriminative-rl", "no-balancing",
    ]  # fmt: skip
    own = {name for name, arm in arms.items() if arm.own_stage != "train"}
    assert own == {"no-balancing", "merged-steps", "abs-q", "rel-ratio"}, "what changes labels"
    assert [arm.name for arm in arms_of(load_config(SHIPPED), ["rs-ft", "full"])] == [
        "full", "rs-ft",
    ]  # fmt: skip


def test_the_shipped_recipe_is_that_of_the_embedded_task() -> None:
    full = load_config(SHIPPED)
    embedded = load_config(ROOT / "configs" / "embedded.yaml")
    sections = {key.split(".")[0] for key in config_difference(embedded, full)}
    assert sections - {"solve", "select", "finetune"} <= {
        "name", "discriminative", "rejection", "evaluate",
    }  # fmt: skip


# --- statistics ---------------------------------------------------------------------------------


def _results(**rows: list[float | None]) -> dict[str, dict[int, dict[str, float | None]]]:
    return {arm: {s: {"f1": v} for s, v in enumerate(values)} for arm, values in rows.items()}


def test_mean_and_error_over_seeds() -> None:
    results = _results(full=[0.8, 0.9, 0.85], once=[0.4], none=[None])
    summary = summarize(results, "full", "f1")
    assert summary is not None
    # Deviations -.05, .05, 0: variance .0025, error .05 / √3.
    assert summary.mean == pytest.approx(0.85)
    assert summary.error == pytest.approx(0.0288675)
    assert summary.values == (0.8, 0.9, 0.85)
    alone = summarize(results, "once", "f1")
    assert alone is not None and alone.error is None
    assert summarize(results, "none", "f1") is None
    assert summarize(results, "absent", "f1") is None


def test_differences_are_paired_by_seed() -> None:
    results = _results(full=[0.8, 0.9, 0.85], other=[0.5, 0.7, 0.6], few=[None, 0.7])
    gap = difference(results, "other", "full", "f1")
    assert gap is not None
    # -.3, -.2, -.25: mean -.25, error .05 / √3, times 4.303.
    assert (gap.mean, gap.seeds) == (pytest.approx(-0.25), 3)
    assert gap.low == pytest.approx(-0.25 - 4.303 * 0.0288675, abs=1e-6)
    assert gap.high == pytest.approx(-0.25 + 4.303 * 0.0288675, abs=1e-6)
    single = difference(results, "few", "full", "f1")
    assert single is not None and (single.seeds, single.low) == (1, None)
    assert single.mean == pytest.approx(-0.2)
    assert difference(results, "absent", "full", "f1") is None


def test_quantiles_of_student() -> None:
    # From printed tables.
    for freedom, expected in ((1, 12.706), (4, 2.776), (20, 2.086), (24, 2.064), (60, 2.000)):
        assert t95(freedom) == pytest.approx(expected, abs=6e-4)


# --- report -------------------------------------------------------------------------------------


def _ablation() -> Ablation:
    return Ablation(
        "toy",
        "full",
        {"full": {}, "other": {"train.method": "rs_ft"}, "unrun": {"train.steps": 1}},
        _results(full=[0.8, 0.9, 0.85], other=[0.5, 0.7, 0.6], start=[0.2, 0.2, 0.3]),
        (0, 1, 2),
        "3 seeds.",
    )


def test_the_table_has_means_differences_and_changes() -> None:
    lines = markdown(_ablation()).splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    assert "0.850 ± 0.029" in rows["**full**"]
    assert "-0.250 [-0.374, -0.126]" in next(line for line in lines if "0.500, 0.700" in line)
    assert any("| start |" in line for line in lines)
    assert "| other | `train.method: rs_ft` |" in lines
    assert not any("unrun" in line for line in lines), "what has no result is not shown"


def test_reports_are_the_same_again() -> None:
    texts = reports(_ablation())
    names = sorted(texts)
    assert names == [
        "ablation-differences.svg", "ablation-scores.svg", "ablation.html", "ablation.json",
        "ablation.md",
    ]  # fmt: skip
    assert texts == reports(_ablation())
    data = json.loads(texts["ablation.json"])
    assert data["figures"]["f1"]["other"]["difference"]["mean"] == pytest.approx(-0.25)
    for name in names[:2]:
        svg = xml.dom.minidom.parseString(texts[name])
        assert len(svg.getElementsByTagName("g")) == (3 if "scores" in name else 2)
    assert "Ablation: toy" in texts["ablation.html"]
