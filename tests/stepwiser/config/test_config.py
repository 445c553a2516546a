"""Configuration: shipped files parse, mistakes are named."""

from pathlib import Path

import pytest

from stepwiser.config import difference, load_config, parse_config
from stepwiser.errors import UserError
from stepwiser.run.resource_plan import engine_range, plan_run, plan_stage, weight_transfer
from tests.support.paths import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
STAGES = ("segment", "annotate", "label", "train", "evaluate", "solve", "select", "finetune")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_config_parses_and_its_plan_fits_what_it_expects(path: Path) -> None:
    config = load_config(path)
    available = {"CPU": 96.0, "GPU": float(config.cluster.expected_gpus)}
    stages = ("train", "evaluate") if path.stem.startswith("train-") else STAGES
    assert [s for plan in plan_run(config, stages) for s in plan.shortfalls(available)] == []


def test_there_are_configs_for_every_documented_scenario() -> None:
    assert {p.stem for p in CONFIGS} >= {"embedded", "gsm8k", "paper-1.5b", "paper-7b"}
    assert {p.stem for p in CONFIGS} >= {"train-1gpu", "train-8xa100-7b", "train-multinode-a100"}


@pytest.mark.parametrize(
    ("name", "gpus", "words"),
    [
        ("train-1gpu", 0, ["needs 1 GPU", "1 engine x 0.6", "1 learner x 0.4", "1 short"]),
        ("train-8xa100-7b", 6, ["needs 8 GPU", "4 engine x 1", "4 learner x 1", "2 short"]),
        ("train-multinode-a100", 8, ["needs 32 GPU", "16 engine x 1", "24 short"]),
    ],
)
def test_a_plan_for_training_names_what_is_short(name: str, gpus: int, words: list[str]) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    (short,) = plan_stage(config, "train").shortfalls({"CPU": 96.0, "GPU": gpus})
    assert all(word in short for word in words), short


@pytest.mark.parametrize(
    ("engine", "learner", "way"),
    [(0, 0, "object_store"), (0.6, 0.4, "cuda_ipc"), (0.25, 1, "object_store"), (1, 1, "nccl")],
)
def test_the_way_of_weights_follows_from_the_placement(engine, learner, way) -> None:
    gpus = {"engine": {"gpus": engine}, "learner": {"gpus": learner}}
    assert weight_transfer(parse_config(gpus)) == way
    chosen = {"train": {"weight_transfer": "object_store"}}
    assert weight_transfer(parse_config(gpus | chosen)) == "object_store"
    adapters = {"learner": {"gpus": learner, "lora": {"rank": 8}}}
    assert weight_transfer(parse_config(gpus | adapters)) == "object_store"


def test_placements_that_cannot_be_are_refused() -> None:
    whole, half = {"gpus": 1}, {"gpus": 0.5}
    with pytest.raises(UserError, match=r"train\.colocated.*engine\.gpus=0\.5.*learner\.gpus=1"):
        parse_config({"engine": half, "learner": whole, "train": {"colocated": True}})
    with pytest.raises(UserError, match=r"weight_transfer=nccl.*engine\.gpus=0\.5"):
        parse_config({"engine": half, "learner": whole, "train": {"weight_transfer": "nccl"}})


def test_paper_numbers() -> None:
    for name, alpha, gamma in (
        ("paper-1.5b", 0.4, 0.8),
        ("paper-7b", 0.8, 0.7),
        ("train-8xa100-7b", 0.8, 0.7),
        ("train-multinode-a100", 0.8, 0.7),
    ):
        config = load_config(ROOT / "configs" / f"{name}.yaml")
        train = config.train
        assert (train.prompts_per_step, train.minibatch_prompts, train.group_size) == (1024, 256, 4)
        assert (train.steps, train.learning_rate) == (800, 1e-6)
        assert (train.clip_low, train.clip_high) == (0.2, 0.28)
        assert (config.label.max_prompt_tokens, train.max_response_tokens) == (3096, 3096)
        assert (config.label.alpha, config.label.gamma) == (alpha, gamma)
        assert (config.annotate.rollouts, config.annotate.responses) == (16, 16)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian.steps=3", ["trian", "did you mean train"]),
        ("train.step=3", ["train.step", "did you mean train.steps"]),
        ("train.steps=many", ["train.steps", "'many'"]),
        ("train.steps=0", ["train.steps", "greater than 0"]),
        ("train.steps", ["key=value"]),
        ("label.rule=best", ["label.rule", "rel_effective"]),
        ("name.x=1", ["name", "not a section"]),
        ("prompts.judge=hello", ["prompts.judge", "chunk"]),
        ("train.minibatch_prompts=4096", ["minibatch_prompts", "prompts_per_step"]),
        ("annotate.stopping=early", ["annotate.stopping", "exact"]),
        ("annotate={stopping: exact, wave: 32}", ["annotate.wave=32", "annotate.rollouts=16"]),
        ("annotate.max_rollouts=64", ["annotate.max_rollouts=64", "stopping=sequential"]),
        (
            "annotate={stopping: sequential, max_rollouts: 8}",
            ["annotate.max_rollouts=8", "annotate.rollouts=16", "raise"],
        ),
        ("annotate.error_bound=0.5", ["annotate.error_bound", "less than 0.5"]),
        ("train={method: rs_ft, reward: outcome}", ["train.reward=outcome", "train.method=grpo"]),
        ("annotate.rules=[{rule: rel_ratio, gama: 1}]", ["annotate.rules.0.gama", "rules.gamma"]),
        ("solve.methods=beams", ["solve.methods.0", "beam_search"]),
        ("solve.beams=[4, 4]", ["solve.beams", "[4, 4]", "each once"]),
        (
            "solve={methods: [early_stop], plain_samples: 1}",
            ["solve.methods=early_stop", "solve.plain_samples=1", "2 or more"],
        ),
    ],
)
def test_mistakes_are_named(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_config(ROOT / "configs" / "embedded.yaml", [override])
    for word in words:
        assert word in str(error.value)


def test_missing_file_lists_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="embedded.yaml"):
        load_config(ROOT / "configs" / "nothing.yaml")


def test_a_wrong_value_is_reported_where_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("annotate: {rollouts: many, responses: some}\n")
    with pytest.raises(UserError) as told:
        load_config(file, ["annotate.responses=few"])
    assert f"{file}: annotate.rollouts" in str(told.value)
    assert "override 'annotate.responses=few': annotate.responses" in str(told.value)


def test_overrides_take_yaml_values() -> None:
    config = load_config(
        ROOT / "configs" / "embedded.yaml", ["train.learning_rate=1e-5", "segment.sft.steps=null"]
    )
    assert config.train.learning_rate == 1e-5
    assert config.segment.sft.steps is None


def test_difference_ignores_where_and_how_fast() -> None:
    old = parse_config({})
    new = parse_config({"engine": {"count": 7}, "run_dir": "x", "train": {"steps": 3}})
    assert difference(old, new) == {"train.steps": (800, 3)}


def test_what_solving_is_held_against_may_change_between_starts() -> None:
    new = load_config(None, ["solve.methods=beam_search", "solve.beams=2", "solve.reduction=min"])
    assert (new.solve.methods, new.solve.beams) == (("beam_search",), (2,))
    assert difference(parse_config({}), new) == {}


def test_engines_may_change_between_starts_and_come_in_order() -> None:
    assert difference(parse_config({}), parse_config({"annotate": {"max_engines": 9}})) == {}
    assert engine_range(parse_config({})) == (1, 1)
    config = parse_config({"engine": {"count": 4}, "annotate": {"max_engines": 9}})
    assert engine_range(config) == (4, 9)
    assert plan_stage(config, "annotate").needs[0].count == 4
    with pytest.raises(UserError, match="max_engines=2 is below annotate.min_engines=3"):
        parse_config({"annotate": {"min_engines": 3, "max_engines": 2}})


def test_settings_that_exclude_each_other_are_named() -> None:
    for raw, words in (
        (
            {"train": {"live": True}, "label": {"balance": False}},
            "live=true .* label.balance=false",
        ),
        ({"annotate": {"stopping": "exact"}, "label": {"chunks_per_step": 2}}, "stopping=fixed"),
    ):
        with pytest.raises(UserError, match=words):
            parse_config(raw)


def test_a_judge_of_bare_verdicts_is_asked_for_nothing_else() -> None:
    verdict = "{problem} {history} {chunk} verdict:"
    asked = {"prompts": {"verdict": verdict}}
    assert parse_config(asked).judge_prompts.judge != verdict
    bare = parse_config(asked | {"train": {"reward": "verdict_only"}})
    assert bare.judge_prompts.judge == verdict
