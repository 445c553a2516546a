"""What a folder must hold to be a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepwiser.config import PromptConfig
from stepwiser.errors import UserError
from stepwiser.prompting.hub.files import check_files, check_trainable, names_in
from stepwiser.prompting.prompt_format import PromptFormat

WHOLE = ("config.json", "tokenizer.json", "model.safetensors")


def _folder(path: Path, *names: str, **config: object) -> Path:
    for name in names:
        (path / name).write_text("{}")
    if config:
        (path / "config.json").write_text(json.dumps(config))
    return path


def _check(folder: Path, *, pickled: bool = False, weights: bool = True) -> None:
    check_files("org/name", folder, names_in(folder), weights=weights, pickled=pickled)


def test_a_whole_model_passes(tmp_path: Path) -> None:
    _check(_folder(tmp_path, *WHOLE))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "no config.json: it is not a Hugging Face directory"),
        (("adapter_config.json", "adapter_model.safetensors"), "an adapter; merge it"),
        (("model-Q4.gguf",), "GGUF files are for other programs"),
        (("params.json", "consolidated.safetensors"), "its makers' own format"),
        (("config.json", "model.safetensors"), "no tokenizer"),
        (("config.json", "tokenizer.json"), "no weights"),
        (("config.json", "tokenizer.json", "model.gguf"), "no weights.*GGUF"),
        (("config.json", "tokenizer.json", "pytorch_model.bin"), "allow_pickled_weights=true"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=f"model org/name .*{said}"):
        _check(_folder(tmp_path, *names))


def test_pickled_weights_are_read_where_they_are_allowed(tmp_path: Path) -> None:
    _check(_folder(tmp_path, "config.json", "tokenizer.model", "pytorch_model.bin"), pickled=True)


def test_a_tokenizer_alone_needs_no_weights(tmp_path: Path) -> None:
    _check(_folder(tmp_path, "config.json", "tokenizer.json"), weights=False)


def test_every_part_that_the_index_names_is_there(tmp_path: Path) -> None:
    _folder(tmp_path, "config.json", "tokenizer.json", "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="lacks b.safetensors"):
        _check(tmp_path)


def test_only_causal_language_models_are_trained(tmp_path: Path) -> None:
    check_trainable("org/name", _folder(tmp_path, model_type="qwen2"), False)
    for kind in ("bert_of_tomorrow", "vit", None):
        _folder(tmp_path, model_type=kind, architectures=["SomeModel"])
        with pytest.raises(UserError, match=f"type {kind} .*SomeModel.*no causal language model"):
            check_trainable("org/name", tmp_path, False)
    own = {"AutoModelForCausalLM": "modeling.Own"}
    _folder(tmp_path, model_type="own", auto_map=own)
    with pytest.raises(UserError, match="trust_remote_code=true runs that, as you"):
        check_trainable("org/name", tmp_path, False)
    check_trainable("org/name", tmp_path, True)


def test_code_of_a_model_runs_when_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.syspath_prepend(str(tmp_path / "m"))
    folder = tmp_path / "model"
    folder.mkdir()
    PromptFormat.from_model_dir("embedded", PromptConfig()).tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "own"}')
    (folder / "own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "class Own(PreTrainedTokenizerFast): pass\n"
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="trust_remote_code=true runs that, as you"):
        PromptFormat.from_model_dir(str(folder), PromptConfig())
    assert not (tmp_path / "ran").exists()
    prompts = PromptFormat.from_model_dir(str(folder), PromptConfig(), trust_remote_code=True)
    assert type(prompts.tokenizer).__name__ == "Own" and (tmp_path / "ran").exists()
