"""LoRA in a learner's model, by peft: which parameters are trained, and what leaves the learner.

The base weights keep still. What is trained are pairs of matrices A [r, in] and B [out, r] beside
a layer's weight W [out, in]; the layer computes W x + scale B A x, with scale = alpha / r. There is
no dropout on the way: log-probs of one minibatch must come from one function.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stepwiser.config.training import LoraConfig
from stepwiser.errors import UserError
from stepwiser.run.model_exports import (
    ADAPTER_CONFIG,
    ADAPTER_DIR,
    ADAPTER_KEY,
    ADAPTER_WEIGHTS,
)

_NAME = "default"
"""Of the one adapter, inside peft."""
_PREFIX = "base_model.model."
"""What peft's files put before a model's own names."""
_OTHER_KINDS = ("use_rslora", "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern")
"""Of an adapter's configuration: what this learner does not compute."""


def add_adapters(model: nn.Module, lora: LoraConfig, start: str | None) -> None:
    """Freeze a model and put adapters beside its layers, in place.

    New ones change nothing yet (B is 0) and are the same on every rank; ``start`` is a folder of
    one to go on with. Raises UserError for modules that the model lacks, or another adapter.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    targets = lora.target_modules
    asked = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            inject_adapter_in_model(asked, model, _NAME)
        except ValueError as error:
            raise UserError(f"learner.lora.target_modules={targets}: {error}") from error
    if start is not None:
        _load(model, lora, Path(start))


def _load(model: nn.Module, lora: LoraConfig, folder: Path) -> None:
    from safetensors.torch import load_file

    check_start(lora, str(folder))
    stored, own = load_file(folder / ADAPTER_WEIGHTS), dict(adapter_parameters(model))
    if different := sorted(stored.keys() ^ own.keys()):
        raise UserError(
            f"train.adapter={folder} has adapters beside other layers than learner.lora."
            f"target_modules={lora.target_modules} asks for ({', '.join(different[:3])}, …): set "
            "the same"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(stored[name])


def check_start(lora: LoraConfig, folder: str) -> None:
    """Raise UserError for a folder that holds no adapter of this rank and alpha."""
    file = Path(folder) / ADAPTER_CONFIG
    if not file.is_file() or not (Path(folder) / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"train.adapter={folder} holds no PEFT adapter: {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} "
            "belong there"
        )
    stored = json.loads(file.read_text())
    if odd := [name for name in _OTHER_KINDS if stored.get(name)]:
        raise UserError(
            f"train.adapter={folder} is no plain LoRA ({', '.join(odd)}): give one of one rank and "
            "alpha, without further weights"
        )
    for name, key, value in (("rank", "r", lora.rank), ("alpha", "lora_alpha", lora.alpha)):
        if stored.get(key) != value:
            raise UserError(
                f"train.adapter={folder} has {name} {stored.get(key)}, and learner.lora.{name}="
                f"{value}: set the adapter's own"
            )


def adapter_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What is trained, under the names of peft's files."""
    return [
        (_PREFIX + name.replace(f".{_NAME}.", "."), parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """The base model's own function."""
    layers = [module for module in model.modules() if hasattr(module, "set_scale")]
    for layer in layers:
        layer.set_scale(_NAME, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(_NAME, 1.0)


def adapter_config(model: nn.Module, lora: LoraConfig, base: str) -> dict[str, Any]:
    """Content of peft's ``adapter_config.json``."""
    layers = {name.rsplit(".", 3)[-3] for name, _ in adapter_parameters(model)}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(layers),
    }


def metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """What a safetensors header says of an adapter, so that its bytes need no other file."""
    return {"format": "pt", ADAPTER_KEY: json.dumps(config)}


def merged(
    adapter: Mapping[str, Tensor], lora: LoraConfig, name: str, weight: Tensor
) -> dict[str, Tensor]:
    """A base weight with its adapter in it, under the name that it has in the plain model.

    ``name`` is that in a model with adapters. What has an adapter comes out in float32, in which it
    is added up: rounded to bfloat16, an update below 1/256 of its weight would be gone. Others stay
    as they are.
    """
    plain = name.replace(".base_layer.", ".")
    layer = _PREFIX + plain.removesuffix(".weight")
    a, b = adapter.get(f"{layer}.lora_A.weight"), adapter.get(f"{layer}.lora_B.weight")
    if plain == name or a is None or b is None:
        return {plain: weight}
    return {plain: weight.float() + lora.alpha / lora.rank * (b.float() @ a.float())}


def add_to_model(model_dir: Path, adapter: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Put the adapter alone, in peft's layout, beside the merged weights, and have the model's
    config.json say that those are float32, so that they are loaded so."""
    from safetensors.torch import save_file

    folder = model_dir / ADAPTER_DIR
    folder.mkdir()
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2))
    save_file(dict(adapter), folder / ADAPTER_WEIGHTS, metadata(config))
    file = model_dir / "config.json"
    model = json.loads(file.read_text())
    model.pop("torch_dtype", None)
    file.write_text(json.dumps(model | {"dtype": "float32"}, indent=2))
