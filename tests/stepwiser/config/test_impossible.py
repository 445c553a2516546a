"""Settings that can never work together are refused at the start: keys, values and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stepwiser.config import load_config
from stepwiser.config.impossible import refuse_impossible
from stepwiser.config.loading import valid_keys
from stepwiser.errors import UserError
from stepwiser.run.store import RunStore
from stepwiser.training.ablation import arms_of
from tests.support.paths import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
EMBEDDED = ROOT / "configs" / "embedded.yaml"
STAGES = ("segment", "annotate", "label", "train", "evaluate", "solve", "select", "finetune")

NEVER: list[tuple[list[str], list[str]]] = [
    (["train.group_size=1"], ["train.group_size=1", "2 or more"]),
    (["train.importance_cap=0"], ["train.importance_cap=0", "above 0"]),
    (["train.importance_cap=-1"], ["train.importance_cap=-1"]),
    (
        ["train.keep=best", "label.heldout_share=0"],
        ["train.keep=best", "label.heldout_share=0", "train.evaluate_processbench"],
    ),
    (
        ["train.early_stop_patience=2", "label.heldout_share=0"],
        ["train.early_stop_patience", "label.heldout_share=0"],
    ),
    (["engine.max_model_len=1"], ["engine.max_model_len=1"]),
    (
        ["engine.max_model_len=90"],
        ["90 tokens", "engine.max_model_len=90", "train.max_response_tokens=90"],
    ),
    (
        ["learner.max_tokens_per_microbatch=64"],
        ["learner.max_tokens_per_microbatch=64", "raise learner.max_tokens_per_microbatch"],
    ),
    (
        ["train.max_response_tokens=4000", "judge_max_tokens=300"],
        ["300 tokens", "judge_max_tokens=300", "engine.max_model_len=256"],
    ),
    (["evaluate.temperature=0"], ["evaluate.votes=4", "evaluate.temperature=0"]),
    (["select.judge_temperature=0", "select.votes=3"], ["select.votes=3", "judge_temperature"]),
    (["finetune.evaluation_temperature=0"], ["finetune.evaluation_samples=4"]),
    (["solve.temperature=0"], ["solve.temperature=0", "raise"]),
    (["annotate.responses=1"], ["annotate.responses=1", "difficulty", "2 or more"]),
    (
        ["train.live=true", "annotate.stopping=exact", "annotate.rules=[{rule: abs_q}]"],
        ["train.live=true", "label.rule=rel_effective", "annotate.stopping=fixed"],
    ),
    (["segment.segmenter=openai"], ["segment.segmenter_url", "segment.segmenter_model"]),
    (["train.method=rs_ft", "rejection.prompts=1"], ["rejection.prompts=1", "null"]),
    (["train.warm_start=true", "rejection.prompts=1"], ["rejection.prompts=1", "null"]),
    (
        ["train.warm_start=true", "train.method=rs_ft"],
        ["train.warm_start=true", "train.method=grpo"],
    ),
    (["train.warm_start=true", "train.live=true"], ["train.warm_start=true", "train.live=true"]),
    (
        ["train.warm_start=true", "train.adapter=models/a", "learner.lora.rank=8"],
        ["train.adapter=models/a", "train.warm_start=true"],
    ),
    (["learner.lora.rank=600"], ["learner.lora.rank=600", "512 at most"]),
    (
        ["learner.lora.rank=8", "learner.lora.target_modules=[q_proj, model.embed_tokens]"],
        ["target_modules has model.embed_tokens", "leave them out"],
    ),
    (
        ["learner.lora.rank=8", "train.weight_transfer=cuda_ipc"],
        ["train.weight_transfer=cuda_ipc", "learner.lora.rank=8", "train.weight_transfer=auto"],
    ),
    (["train.adapter=models/a"], ["train.adapter=models/a", "learner.lora.rank=0"]),
    (["engine.gpus=1.5"], ["engine.gpus=1.5", "round"]),
    (["learner.gpus=2.5"], ["learner.gpus=2.5"]),
    (
        ["engine.gpus=1", "engine.tensor_parallel_size=4"],
        ["engine.tensor_parallel_size=4", "engine.gpus=4"],
    ),
    (["engine.gpu_memory_utilization=0"], ["engine.gpu_memory_utilization=0"]),
    (
        ["engine.count=4", "engine.gpus=0.3", "engine.gpu_memory_utilization=0.4"],
        ["3 engines of engine.gpus=0.3", "want 1.2 of its memory", "lower it to 0.3"],
    ),
    (["cluster.cpus=-1"], ["cluster.cpus=-1"]),
    (["train.weight_transfer=nccl"], ["train.weight_transfer=nccl", "engine.gpus=0"]),
    (
        ["train.weight_transfer=cuda_ipc", "engine.gpus=1", "learner.gpus=1"],
        ["train.weight_transfer=cuda_ipc", "engine.gpus=1"],
    ),
    (
        ["engine.gpus=0.6", "learner.gpus=0.6"],
        ["engine.gpus=0.6", "learner.gpus=0.6", "object_store"],
    ),
    (["run_dir="], ["run_dir is empty"]),
    (["data.source= "], ["data.source is empty"]),
]


@pytest.mark.parametrize(("overrides", "words"), NEVER, ids=[" ".join(o) for o, _ in NEVER])
def test_what_can_never_work_is_refused(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_config(EMBEDDED, overrides)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.group_size=1", "train.method=rs_ft"],
        ["train.group_size=1", "train.method=discriminative"],
        ["train.group_size=2"],
        ["train.warm_start=true"],
        ["train.importance_cap=null"],
        ["train.keep=best", "label.heldout_share=0", "train.evaluate_processbench=5"],
        ["engine.max_model_len=90", "train.method=discriminative"],
        ["engine.max_model_len=91"],
        ["evaluate.temperature=0", "evaluate.votes=1"],
        ["finetune.evaluation_temperature=0", "finetune.evaluation_samples=1"],
        ["annotate.responses=1", "annotate.source=a.jsonl"],
        ["annotate.responses=2", "annotate.rollouts=1", "annotate.trajectories_per_problem=9"],
        ["train.live=true", "annotate.stopping=exact"],
        ["train.live=true", "annotate.rules=[{rule: abs_q}]"],
        [
            "train.live=true",
            "annotate.stopping=exact",
            "annotate.rules=[{rule: abs_q}]",
            "label={rule: abs_q, minimum_previous_value: 0}",
        ],
        ["segment.segmenter=openai", "prompts.steps=paragraphs"],
        ["segment={segmenter: openai, segmenter_url: 'http://a/v1', segmenter_model: m}"],
        ["engine.gpus=4", "engine.tensor_parallel_size=4"],
        ["engine.gpus=0.6", "learner.gpus=0.4"],
        ["engine.count=8", "engine.gpus=0.5", "engine.gpu_memory_utilization=0.5"],
        ["engine.count=1", "engine.gpus=0.3", "engine.gpu_memory_utilization=0.9"],
        ["engine.gpus=0.6", "learner.gpus=0.6", "train.weight_transfer=object_store"],
        ["label.heldout_share=1"],
        ["label.heldout_share=0"],
        ["label.minimum_previous_value=1", "annotate.stop_below=1"],
        ["train.staleness=90", "train.steps=2", "train.warmup_steps=50"],
        ["train.prompts_per_step=7", "train.minibatch_prompts=7"],
        ["annotate.stopping=exact", "annotate.wave=1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_may_work_is_accepted(overrides: list[str]) -> None:
    load_config(EMBEDDED, overrides)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_are_possible(path: Path) -> None:
    config = load_config(path)
    stages = ("train",) if path.stem.startswith("train-") else STAGES
    refuse_impossible(config, path.name, stages)


@pytest.mark.parametrize(
    ("stage", "overrides", "words"),
    [
        ("train", ["label.heldout_share=1"], "label.heldout_share=1"),
        ("evaluate", ["evaluation_data.source=gsm8k"], "evaluate.source=embedded"),
    ],
)
def test_what_one_stage_can_never_do_is_refused_there(
    stage: str, overrides: list[str], words: str
) -> None:
    config = load_config(EMBEDDED, overrides)
    refuse_impossible(config, "x", ["annotate"])
    with pytest.raises(UserError, match=words):
        refuse_impossible(config, "x", [stage])


def test_an_arm_is_held_against_it_before_any_arm_runs() -> None:
    arms = "ablate.arms={full: {}, alone: {train.group_size: 1}}"
    with pytest.raises(UserError, match=r"ablate.arms.alone: train.group_size=1"):
        arms_of(load_config(EMBEDDED, [arms]))


def test_what_has_run_stays_readable(tmp_path: Path) -> None:
    """A run that was started before these were refused is still a run."""
    raw: dict[str, Any] = {"train": {"group_size": 1}, "run_dir": "s3://bucket/run"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    config = RunStore(tmp_path).config()
    assert (config.train.group_size, config.run_dir) == (1, "s3://bucket/run")


# --- addresses ------------------------------------------------------------------------------------

PLACES = (
    "run_dir", "policy_model", "judge_model", "segment.segmenter_model", "data.source",
    "evaluation_data.source", "annotate.source", "evaluate.source",
)  # fmt: skip


@pytest.mark.parametrize("key", PLACES)
@pytest.mark.parametrize(
    "address", ["s3://bucket/run", "gs://b/r", "hdfs://h/r", "https://h/a.json"]
)
def test_an_address_is_no_place(key: str, address: str) -> None:
    if key == "run_dir" and address.startswith(("s3:", "gs:")):
        assert load_config(EMBEDDED, [f"{key}={address}"]).run_dir == address
        return
    with pytest.raises(UserError, match=f"{key}={address} is an address") as error:
        load_config(EMBEDDED, [f"{key}={address}"])
    assert "mount or copy it" in str(error.value)


@pytest.mark.parametrize("key", PLACES)
@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("file:///tmp/a b", "/tmp/a b"),
        ("file://localhost/tmp/a%20%23b", "/tmp/a #b"),
        ("FILE:///tmp/a#b?c", "/tmp/a#b?c"),
        ("file:/tmp/a", "/tmp/a"),
    ],
)
def test_a_file_address_is_a_path(key: str, address: str, path: str) -> None:
    value: Any = load_config(EMBEDDED, [f"{key}={address}"])
    for part in key.split("."):
        value = getattr(value, part)
    assert value == path


def test_further_sets_are_places_too() -> None:
    more = "evaluate.more=[{source: 's3://b/x.json', name: x}]"
    with pytest.raises(UserError, match="evaluate.more.0.source=s3://b/x.json"):
        load_config(EMBEDDED, [more])
    with pytest.raises(UserError, match="names a machine, 'host'"):
        load_config(EMBEDDED, ["run_dir=file://host/run"])


@pytest.mark.parametrize("place", ["s3://bucket/run", Path("s3://bucket/run")])
def test_no_run_directory_is_called_like_an_address(place: str | Path) -> None:
    store = RunStore(place)
    assert store.place == "s3://bucket/run" and "s3:" not in store.root.parts
    with pytest.raises(UserError, match="scheme hdfs"):
        RunStore("hdfs://host/run")
    assert RunStore("file:///tmp/run").root == Path("/tmp/run")
    assert RunStore("./s3:/run").root == Path("./s3:/run")


def test_urls_that_are_asked_stay(tmp_path: Path) -> None:
    overrides = ["segment.segmenter_url=http://a:1/v1", "cluster.address=ray://h:1"]
    config = load_config(EMBEDDED, overrides)
    assert config.segment.segmenter_url == "http://a:1/v1"
    assert config.cluster.address == "ray://h:1"


# --- overrides ------------------------------------------------------------------------------------

TEXTS = (
    "####", "#", "# x", "a # b", "/data/my #1/set", ": ", "Answer: ", "a: b", "- a", "[a", "*a",
    "{problem}", "&a", "!x", "%a", "@a", "`a", "yes", "on", "12", "1e3", "0x10", "2024-01-01", "?",
    "1:30", "|", ">", "a\tb", "\u2028", " lead", "trail ", "\\n", "'", '"', "a'b", "...", "---",
    "=", "a=b", "true",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["data.answer_delimiter", "name", "evaluate.forced_prefix"])
def test_a_text_is_the_text_that_was_typed(key: str, text: str) -> None:
    def value(override: str) -> Any:
        found: Any = load_config(EMBEDDED, [override])
        for part in key.split("."):
            found = getattr(found, part)
        return found

    assert value(f"{key}={text}") == text
    quoted = "'" + text.replace("'", "''") + "'"
    assert value(f"{key}={quoted}") == text, "quotes change nothing"
    double = yaml.safe_dump(text, default_style='"', allow_unicode=False, width=10**6).strip()
    assert value(f"{key}={double}") == text


def test_nothing_is_nothing_where_a_key_may_have_none() -> None:
    for text in ("", "null", "~"):
        assert (
            load_config(EMBEDDED, [f"data.answer_delimiter={text}"]).data.answer_delimiter is None
        )
        assert load_config(EMBEDDED, [f"annotate.max_engines={text}"]).annotate.max_engines is None
    assert load_config(EMBEDDED, ["data.answer_delimiter='null'"]).data.answer_delimiter == "null"
    assert load_config(EMBEDDED, ["evaluate.forced_prefix="]).evaluate.forced_prefix == ""
    assert load_config(EMBEDDED, ["name=null"]).name == "null", "a name is never nothing"


@pytest.mark.parametrize(
    ("override", "value"),
    [("train.steps=20", 20), ("train.steps='20'", 20), ('train.steps="20"', 20)],
)
def test_quotes_change_no_number(override: str, value: int) -> None:
    assert load_config(EMBEDDED, [override]).train.steps == value


@pytest.mark.parametrize("override", ["train.steps=20 # few", "train.steps=#20", "train.live=#"])
def test_a_comment_in_an_override_is_refused(override: str) -> None:
    with pytest.raises(UserError, match="is a comment to YAML"):
        load_config(EMBEDDED, [override])


def test_a_delimiter_that_yaml_hides_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("data:\n  answer_delimiter: ####\n")
    with pytest.raises(UserError, match='answer_delimiter: "####"'):
        load_config(file)
    for line in ('answer_delimiter: "####"', "answer_delimiter: # none", "answer_delimiter:"):
        file.write_text(f"data:\n  {line}\n")
        load_config(file)


def test_a_config_with_a_signature_or_without_a_mapping(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbfname: x\r\n")
    assert load_config(file).name == "x"
    for content in (b"[1]", b"a: [", b"\xff\xfe", b"3"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.yaml"):
            load_config(file)


def test_every_text_key_takes_a_text() -> None:
    """No key is forgotten: each that may hold text takes `#` for itself, or refuses the word."""
    from stepwiser.config.loading import _kinds_of, value_of

    keys = [key for key in valid_keys() if str in _kinds_of(key)]
    assert len(keys) > 25
    for key in keys:
        assert value_of(key, "a #b", "here") == "a #b"
