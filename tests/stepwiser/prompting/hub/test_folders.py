"""Names of models: what they stand for, where they lie, and what is said where they do not."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path

import pytest

from stepwiser.config import PromptConfig
from stepwiser.errors import UserError
from stepwiser.prompting.hub.folders import find_commit, model_folder, resolve_model
from stepwiser.prompting.hub.reference import HubModel, hub_model
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.tasks import load_base_model_dir
from tests.stepwiser.prompting.hub.hub_server import local_hub, use_endpoint
from tests.support.hub_cache import add_to_cache, use_cache

NAME = "Qwen/Qwen2.5-0.5B-Instruct"
MODEL = load_base_model_dir()
OTHER = "0" * 40


@pytest.fixture
def commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the model of this name in the cache of this process, which is offline."""
    made = add_to_cache(tmp_path, NAME, MODEL)
    use_cache(monkeypatch, tmp_path)
    return made


def test_a_name_is_a_commit_and_a_folder(commit: str, tmp_path: Path) -> None:
    assert resolve_model(NAME) == resolve_model(f"{NAME}@main") == f"{NAME}@{commit}"
    folder = model_folder(f"{NAME}@{commit}")
    assert folder == model_folder(NAME)
    assert folder.parent == tmp_path / "hub" / "models--Qwen--Qwen2.5-0.5B-Instruct" / "snapshots"
    assert (folder / "model.safetensors").is_symlink(), "the layout of the Hub's cache"
    named = PromptFormat.from_model_dir(f"{NAME}@{commit}", PromptConfig())
    packaged = PromptFormat.from_model_dir("embedded", PromptConfig())
    assert named.policy_ids("ana has 2 coins .") == packaged.policy_ids("ana has 2 coins .")


def test_a_branch_that_moves_moves_no_run(commit: str, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(MODEL, newer)
    (newer / "README.md").write_text("newer")
    moved = add_to_cache(tmp_path, NAME, newer)
    assert moved != commit
    assert resolve_model(NAME) == f"{NAME}@{moved}"
    assert resolve_model(NAME, commit) == f"{NAME}@{commit}"
    assert model_folder(f"{NAME}@{commit}").name == commit
    tagged = add_to_cache(tmp_path, NAME, MODEL, revision="v1")
    assert resolve_model(f"{NAME}@v1") == f"{NAME}@{tagged}"


@pytest.mark.parametrize(
    "text", ["./nothing", "/nothing/here", "nothing", "a/b/c", "a/b@", "a b/c"]
)
def test_what_is_neither_folder_nor_name_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="does not exist: give a Hugging Face directory, or a name"):
        resolve_model(text)


def test_a_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(MODEL, tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert hub_model("org/name") is None
    assert resolve_model("org/name") == str(tmp_path / "org" / "name")
    assert hub_model("org/other") == HubModel("org/other", "main")


# --- offline --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Qwen/Qwen2.5-0.5B-Instuct", f"cached and called alike: {NAME}"),
        ("Qwen/Qwen2.5-0.5B-Instuct", "`hf download Qwen/Qwen2.5-0.5B-Instuct`"),
        (f"{NAME}@v2", f"`hf download {NAME} --revision v2`"),
        (f"{NAME}@v2", f"cached of it: {NAME}@"),
        (f"{NAME}@{OTHER}", f"`hf download {NAME} --revision {OTHER}`"),
        ("models/policy", "is no folder here"),
        ("nobody/nothing", socket.gethostname()),
    ],
)
def test_what_is_not_cached_is_named_offline(commit: str, model: str, said: str) -> None:
    with pytest.raises(UserError) as refusal:
        model_folder(model)
    assert said in str(refusal.value) and "HF_HUB_OFFLINE" in str(refusal.value)


def test_a_download_that_broke_off_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, tmp_path)
    sharded = tmp_path / "sharded"
    shutil.copytree(MODEL, sharded)
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    (sharded / "model.safetensors").rename(sharded / first)
    (sharded / second).write_bytes((sharded / first).read_bytes())
    index = {"weight_map": {"a": first, "b": second}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    commit = add_to_cache(tmp_path, NAME, sharded, without=[second])
    assert model_folder(NAME, weights=False).name == commit
    with pytest.raises(UserError, match=f"lacks {second} of it.*--revision {commit}"):
        model_folder(NAME)
    add_to_cache(tmp_path, NAME, sharded)
    assert model_folder(NAME).name == commit


# --- with a Hub -----------------------------------------------------------------------------------


def test_a_model_is_fetched_once_and_only_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, tmp_path, offline=False)
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    for name in ("pytorch_model.bin", "model.gguf", "tf_model.h5"):
        (folder / name).write_bytes(b"not for us")
    with local_hub(monkeypatch, {"org/name": folder}) as hub:
        model = resolve_model("org/name")
        assert model == f"org/name@{hub.commit('org/name')}"
        small = model_folder(model, weights=False)
        assert {"config.json", "tokenizer.json"} <= {file.name for file in small.iterdir()}
        assert not (small / "model.safetensors").exists()
        whole = model_folder(model)
        assert whole == small
        assert (whole / "model.safetensors").read_bytes() == (
            MODEL / "model.safetensors"
        ).read_bytes()
        assert not {"pytorch_model.bin", "model.gguf", "tf_model.h5"} & {
            f.name for f in whole.iterdir()
        }
        hub.asked.clear()
        assert model_folder(model) == whole and not hub.asked, "what is here is not asked for"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("org/gated", "is gated.*ask for access on https://huggingface.co/org/gated.*HF_TOKEN"),
        (
            "org/absent",
            "no model on the Hub, or a private one.*called alike: org/absence.*HF_TOKEN",
        ),
        ("org/unknown-revision@v9", "no revision v9"),
        ("org/broken", "does not give it .*500.*hf download org/broken"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, said: str
) -> None:
    add_to_cache(tmp_path, "org/absence", MODEL)
    use_cache(monkeypatch, tmp_path, offline=False)
    with local_hub(monkeypatch, {}), pytest.raises(UserError, match=said):
        model_folder(model)


def test_a_machine_without_network_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = add_to_cache(tmp_path, NAME, MODEL)
    use_cache(monkeypatch, tmp_path, offline=False)
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # nobody listens
        use_endpoint(monkeypatch, f"http://127.0.0.1:{unheard.getsockname()[1]}")
        began = time.monotonic()
        found = find_commit(HubModel(NAME))
        assert found.commit == commit and "was not heard" in found.notice
        assert model_folder(NAME).name == commit
        with pytest.raises(UserError, match="org/name is no folder here.*hf download org/name"):
            model_folder("org/name")
        assert time.monotonic() - began < 10
