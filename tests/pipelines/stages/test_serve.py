"""Which judge is served, and how it is asked; nothing is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.stages.serve import application, serve_options
from serve.access.keys import add_key
from serve.app import INGRESS, TOKEN_VARIABLE
from stepwiser.config import load_config
from stepwiser.errors import UserError
from stepwiser.run.model_card import Training, model_card, rule_in_words
from tests.support.paths import ROOT

CONFIG = ROOT / "configs" / "embedded.yaml"


def test_a_judge_from_elsewhere_is_asked_as_its_card_says(tmp_path: Path) -> None:
    trained = load_config(
        CONFIG, ["judge_max_tokens=33", "train.temperature=0.7", "label.rule=abs_q"]
    ).model_copy(update={"prompts": load_config(ROOT / "configs" / "gsm8k.yaml").prompts})
    (tmp_path / "README.md").write_text(model_card(trained, Training(5, "some/model")))
    config = load_config(CONFIG, [f"serve.model={tmp_path}"])
    options = serve_options(config, str(tmp_path))
    assert options.prompts == trained.judge_prompts != config.judge_prompts
    assert (options.max_tokens, options.temperature) == (33, 0.7)
    assert options.label_rule == rule_in_words(trained.label)
    # A model without a card is asked as the run says, and nobody knows its rule.
    (tmp_path / "README.md").unlink()
    options = serve_options(config, str(tmp_path))
    assert (options.prompts, options.max_tokens) == (config.judge_prompts, 90)
    assert options.label_rule is None
    # The run's own judge is asked as the run says, whatever has been overridden since.
    options = serve_options(load_config(CONFIG, ["judge_max_tokens=20"]), str(tmp_path))
    assert (options.max_tokens, options.label_rule) == (20, rule_in_words(config.label))


def test_a_policy_and_a_run_are_served_beside_the_judge(tmp_path: Path) -> None:
    config = load_config(CONFIG, ["solve.max_chunks=3"])
    assert serve_options(config, "judge").policy is None
    policy = serve_options(config, "judge", "policy").policy
    assert policy is not None and policy.engine.model == "policy"
    assert (policy.prompts, policy.solve.max_chunks) == (config.prompts, 3)
    with pytest.raises(UserError, match="holds no annotated solutions"):
        serve_options(load_config(CONFIG, [f"serve.run={tmp_path}"]), "judge")


def test_serve_run_wants_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    arguments = {"config": str(CONFIG), "serve.model": "embedded", "serve.max_replicas": "2"}
    with pytest.raises(UserError, match="stepwiser keys add"):
        application(arguments)
    add_key(tmp_path / "keys.json", "one")
    built = application(arguments | {"serve.keys": str(tmp_path / "keys.json")})
    assert built._bound_deployment.name == INGRESS
    with pytest.raises(UserError, match="run `stepwiser train` first"):
        application({"config": str(CONFIG), "run_dir": str(tmp_path)})


def test_an_open_server_stays_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    for host in ("0.0.0.0", "::", "judge.example.org"):
        config = load_config(CONFIG, [f"serve.host={host}"])
        with pytest.raises(UserError, match="serve.host=.*stepwiser keys add"):
            serve_options(config, "model")
    for host in ("127.0.0.1", "::1", "localhost"):
        serve_options(load_config(CONFIG, [f"serve.host={host}"]), "model")
    with pytest.raises(UserError, match=r"serve.max_replicas=1 is below serve.replicas=2"):
        load_config(CONFIG, ["serve.replicas=2", "serve.max_replicas=1"])
