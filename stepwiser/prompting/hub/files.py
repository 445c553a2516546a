"""What a model's folder must hold before anything is loaded from it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from stepwiser.errors import UserError

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
              "sentencepiece.bpe.model", "tekken.json")  # fmt: skip
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
"""Patterns of files with weights that torch reads."""
FOREIGN = ("*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ckpt", "*.pkl", "*.npz",
           "*.tflite", "*.mlmodel", "*.ot")  # fmt: skip
"""Patterns of the same weights for other libraries; never fetched."""


def names_in(folder: Path) -> set[str]:
    """Files of a folder; not those of a Hub cache whose content was not fetched."""
    return {path.name for path in folder.iterdir() if path.is_file()}


def missing_files(folder: Path, weights: bool) -> list[str]:
    """What a folder lacks of a model's files; some of it the model may never have had."""
    names = names_in(folder)
    missing = [] if "config.json" in names else ["config.json"]
    if not names.intersection(TOKENIZERS):
        missing.append("tokenizer.json")
    if weights:
        missing += _missing_weights(folder, names)
    return missing


def _missing_weights(folder: Path, names: Collection[str]) -> list[str]:
    for kind, whole in ((".safetensors", "model.safetensors"), (".bin", "pytorch_model.bin")):
        if f"{whole}.index.json" in names:
            shards = read_settings(folder / f"{whole}.index.json").get("weight_map", {}).values()
            return sorted(set(shards) - set(names))
        if any(name.endswith(kind) for name in names):
            return []
    return ["model.safetensors"]


def check_files(
    model: str, folder: Path, names: Collection[str], *, weights: bool, pickled: bool
) -> None:
    """Raise UserError, naming the model, where it is none that can be trained and sampled.

    Args:
        model: as a person calls it.
        folder: holds at least its small files.
        names: all its files, also those that another machine will fetch.
        weights: whether they are needed.
        pickled: whether weights that are not safetensors may be read (allow_pickled_weights).
    """
    if "config.json" not in names:
        raise UserError(f"model {model} has no config.json: {_what_it_is(names)}")
    read_settings(folder / "config.json")
    if not names_of_a_tokenizer(names):
        raise UserError(
            f"model {model} has no tokenizer: copy tokenizer.json and tokenizer_config.json there, "
            "or take a model that comes with one"
        )
    if not weights:
        return
    if any(name.endswith(".safetensors") for name in names):
        if lacking := _missing_weights(folder, names):
            raise UserError(
                f"model {model} lacks {', '.join(lacking[:3])}"
                f"{f' and {len(lacking) - 3} more' if len(lacking) > 3 else ''}, which its index "
                "names: copy or fetch it again"
            )
        return
    if not any(name.endswith(".bin") for name in names):
        raise UserError(f"model {model} has no weights (*.safetensors): {_what_it_is(names)}")
    if not pickled:
        raise UserError(
            f"model {model} has its weights as .bin only, which are pickled: reading them can run "
            "code of whoever wrote them. Take a revision with *.safetensors, or set "
            "allow_pickled_weights=true where you trust it"
        )


def names_of_a_tokenizer(names: Collection[str]) -> list[str]:
    """The files that a tokenizer can be made of, those of a model's own kind included."""
    return [n for n in names if n in TOKENIZERS or n.endswith((".tiktoken", ".model"))]


def read_settings(file: Path) -> dict[str, Any]:
    """A JSON object of a model's folder; raises UserError, naming the file, for what is none."""
    try:
        settings = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}; copy or fetch it again") from error
    if not isinstance(settings, dict):
        raise UserError(f"{file} holds a {type(settings).__name__}, not an object")
    return settings


def _what_it_is(names: Collection[str]) -> str:
    if "adapter_config.json" in names:
        return "it is an adapter; merge it into its base model and name the result"
    if any(name.endswith(".gguf") for name in names):
        return "GGUF files are for other programs; take the model they were made from"
    if "params.json" in names:
        return "it has its makers' own format; take the model in Hugging Face's"
    return "it is not a Hugging Face directory"


def own_code(folder: Path) -> str:
    """What to say of a model that brings code, which is not run unasked; else nothing."""
    files = [folder / name for name in ("config.json", "tokenizer_config.json")]
    if not any("auto_map" in read_settings(file) for file in files if file.is_file()):
        return ""
    return (
        ". It brings Python code of its own: trust_remote_code=true runs that, as you, on every "
        "machine of the run; read it first"
    )


def check_trainable(model: str, folder: Path, trust_remote_code: bool) -> None:
    """Raise UserError where transformers has no causal language model of this kind.

    Args:
        model: as a person calls it.
        folder: holds at least its small files.
    """
    settings = read_settings(folder / "config.json")
    kind, own = settings.get("model_type"), settings.get("auto_map") or {}
    if trust_remote_code and "AutoModelForCausalLM" in own:
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        names = ", ".join(settings.get("architectures") or ()) or "unnamed"
        raise UserError(
            f"model {model} is of type {kind} (architecture {names}), which is no causal language "
            f"model of the installed transformers: take another model{own_code(folder)}"
        )
