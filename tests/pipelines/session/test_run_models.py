"""Models of a run: looked at before any work, one commit from start to start, on every node."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from actors.engine.architectures import listed_architectures, refuse_unknown
from cluster.local_nodes import local_cluster
from pipelines.cli.app import STAGES
from pipelines.session.plan_table import plan_table
from pipelines.session.run_models import RunModels
from pipelines.session.session import Session
from stepwiser.config import RunConfig, load_config
from stepwiser.errors import UserError
from stepwiser.run.merge import merge
from stepwiser.run.models_used import models_used
from stepwiser.run.resource_plan import plan_run
from stepwiser.run.store import RunStore
from stepwiser.tasks import load_base_model_dir
from tests.support.hub_cache import SHIPPED, add_to_cache, shipped_models, use_cache
from tests.support.paths import ROOT

NAME = SHIPPED[0]
MODEL = load_base_model_dir()
CONFIGS = sorted(
    str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml")
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache with the shipped names, which this process reads."""
    home = tmp_path / "hf"
    shipped_models(home, MODEL)
    use_cache(monkeypatch, home)
    return home


def _config(tmp_path: Path, *overrides: str, name: str = "embedded.yaml") -> RunConfig:
    return load_config(ROOT / "configs" / name, [f"run_dir={tmp_path / 'run'}", *overrides])


def _check(config: RunConfig, stages: Sequence[str] = STAGES) -> tuple[RunModels, str]:
    said = io.StringIO()
    models = RunModels(config, RunStore(config.run_dir), Console(file=said, width=200))
    models.check(stages)
    return models, said.getvalue()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_starts_from_the_names_it_has(
    cache: Path, tmp_path: Path, name: str
) -> None:
    config = _config(tmp_path, name=name)
    _, said = _check(config)
    for key in ("policy_model", "judge_model"):
        model = getattr(config, key)
        if model not in (None, "embedded"):
            assert f"{key}: {model} at " in said
    assert plan_table(plan_run(config, STAGES)).row_count == len(STAGES)


def test_models_are_asked_for_by_the_stages_that_load_them(tmp_path: Path) -> None:
    def used(*stages: str, config: RunConfig) -> dict[str, tuple[bool, bool]]:
        return {u.key: (u.weights, u.discriminates) for u in models_used(config, stages)}

    chunks = _config(tmp_path, "segment.segmenter=engine", "segment.segmenter_model=org/big")
    assert used("report", config=chunks) == used("serve", config=chunks) == {}
    # The chunk-tuned policy is the run's own: of the one before it only the tokenizer is read.
    assert used("annotate", "label", config=chunks) == {"policy_model": (False, False)}
    assert used("train", config=chunks) == {
        "policy_model": (False, False),
        "judge_model": (True, True),
    }
    assert used("segment", config=chunks) == {
        "policy_model": (True, False),
        "segment.segmenter_model": (True, False),
    }
    plain = _config(tmp_path, "prompts.steps=paragraphs", "judge_model=null")
    assert used("segment", "train", config=plain) == {"policy_model": (True, True)}
    others = "[{name: a, kind: skywork, model: org/a}, {name: b, kind: endpoint, model: b, url: u}]"
    compared = models_used(_config(tmp_path, f"evaluate.judges={others}"), ["evaluate"])
    assert [(u.key, u.writes) for u in compared if u.model in ("org/a", "b")] == [
        ("evaluate.judges.a.model", False)
    ]
    served = _config(tmp_path, name="paper-7b.yaml")
    assert set(used(*STAGES, config=served)) == {"policy_model"}, "a URL is no model to fetch"


# --- refused before any work ----------------------------------------------------------------------


def _model(folder: Path, **settings: object) -> Path:
    shutil.copytree(MODEL, folder)
    for name, value in settings.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | dict(value)))  # type: ignore[call-overload]
    return folder


def test_a_judge_that_cannot_be_asked_is_refused_before_the_policy_samples(
    cache: Path, tmp_path: Path
) -> None:
    silent = _model(tmp_path / "silent")
    (silent / "chat_template.jinja").write_text("{{ messages[0]['role'] }}")
    add_to_cache(cache, "org/silent", silent)
    config = _config(tmp_path, "judge_model=org/silent")
    with (
        pytest.raises(UserError, match="chat template of org/silent@"),
        Session(config, Console(file=io.StringIO())) as session,
    ):
        session.start(STAGES)
    assert not (tmp_path / "run").exists(), "the same run_dir takes another model"


def test_models_that_cannot_be_trained_or_read_are_refused(cache: Path, tmp_path: Path) -> None:
    pickled = _model(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    strange = _model(tmp_path / "strange", config={"model_type": "tomorrow"})
    for folder, said in ((pickled, "allow_pickled_weights=true"), (strange, "type tomorrow")):
        with pytest.raises(UserError, match=f"model {folder} .*{said}"):
            _check(_config(tmp_path, f"judge_model={folder}"))
    _check(_config(tmp_path, f"judge_model={pickled}", "allow_pickled_weights=true"))
    with pytest.raises(UserError, match="org/missing is no folder here"):
        _check(_config(tmp_path, "judge_model=org/missing"))


def test_architectures_are_those_that_vllm_lists() -> None:
    listed = listed_architectures()
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "Gemma3ForCausalLM"} <= listed
    assert "NoSuchForCausalLM" not in listed


@pytest.mark.slow  # vLLM is imported
def test_vllm_says_of_what_it_does_not_list_whether_it_takes_it(tmp_path: Path) -> None:
    # transformers has it as a causal language model; vLLM has no code for it and takes no one's.
    config = {"architectures": ["OpenAIGPTLMHeadModel"], "model_type": "openai-gpt"}
    folder = _model(tmp_path / "strange")
    (folder / "config.json").write_text(json.dumps(config))
    assert "OpenAIGPTLMHeadModel" not in listed_architectures()
    with pytest.raises(UserError, match=f"vLLM cannot load model {folder}: Model architec"):
        refuse_unknown(str(folder), False)


# --- one commit -----------------------------------------------------------------------------------


def test_a_run_goes_on_with_the_commit_it_began_with(cache: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, f"policy_model={NAME}", f"judge_model={NAME}")
    models, _ = _check(config)
    RunStore(config.run_dir).open(config)
    models.record()
    began = models.resolve(NAME)
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())["models"]
    entry = {"name": NAME, "revision": "main", "commit": began.partition("@")[2]}
    assert recorded == {"policy_model": entry, "judge_model": entry}

    newer = _model(tmp_path / "newer")
    (newer / "README.md").write_text("newer")
    moved = add_to_cache(cache, NAME, newer)
    assert _check(config)[0].resolve(NAME) == began
    fresh = _config(tmp_path / "other", f"policy_model={NAME}")
    assert _check(fresh)[0].resolve(NAME) == f"{NAME}@{moved}"
    pinned = _check(config)[0].pinned()
    assert pinned.policy_model == pinned.judge_model == began

    other = _config(tmp_path, f"policy_model={NAME}@{moved}", f"judge_model={NAME}")
    with pytest.raises(UserError, match=f"policy_model: '{began}' -> '{NAME}@{moved}'"):
        RunStore(config.run_dir).open(other)
    RunStore(config.run_dir).open(_config(tmp_path, f"policy_model={NAME}", f"judge_model={began}"))


def test_runs_of_different_commits_are_not_merged(tmp_path: Path) -> None:
    config = _config(tmp_path, f"policy_model={NAME}")
    stores = [RunStore(tmp_path / name).open(config) for name in ("a", "b")]
    for store, commit in zip(stores, ("1" * 40, "2" * 40), strict=True):
        store.record_models({"policy_model": {"name": NAME, "revision": "main", "commit": commit}})
    with pytest.raises(UserError, match=f"commits of policy_model={NAME}: 1+ and 2+"):
        merge(stores, RunStore(tmp_path / "out"))


# --- every node -----------------------------------------------------------------------------------


def test_a_node_that_lacks_a_model_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    commit = add_to_cache(here, NAME, MODEL)
    use_cache(monkeypatch, here)
    config = _config(tmp_path, f"judge_model={NAME}", "policy_model=embedded")
    with local_cluster(1) as cluster:
        node = cluster.add_node(1, env_vars={"HF_HOME": str(there)})
        models, _ = _check(config, ["train"])
        said = f"node {node.node_ip_address}: model {NAME}@{commit} is no folder here.*{there}"
        with pytest.raises(UserError, match=f"{said}.*hf download {NAME} --revision {commit}"):
            models.provide()
        add_to_cache(there, NAME, MODEL)
        models.provide()
