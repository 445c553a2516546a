"""Whether vLLM can load a model's architecture, known before an engine is started."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from stepwiser.errors import UserError
from stepwiser.prompting.hub.folders import model_folder


@cache
def listed_architectures() -> frozenset[str]:
    """Those that the installed vLLM has code of its own for; none where it is not installed.

    Read from its source: importing vLLM takes ten seconds, and the machine of the driver may have
    none.
    """
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return frozenset()
    file = Path(spec.origin).parent / "model_executor" / "models" / "registry.py"
    if not file.is_file():
        return frozenset()
    return frozenset(_keys(ast.parse(file.read_text("utf-8"))))


def _keys(tree: ast.Module) -> Iterable[str]:
    """Names that stand for a module and a class, in the tables of the file's top level."""
    for node in tree.body:
        value = getattr(node, "value", None)
        if not isinstance(value, ast.Dict):
            continue
        for key, entry in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(entry, ast.Tuple):
                yield str(key.value)


def refuse_unknown(model: str, trust_remote_code: bool) -> None:
    """Ask vLLM itself, which imports it: it takes some models by transformers' code, or by theirs.

    Raises UserError, naming the model, where it takes it by none.
    """
    from vllm.engine.arg_utils import EngineArgs

    folder = str(model_folder(model, weights=False))
    try:
        EngineArgs(
            model=folder, runner="generate", trust_remote_code=trust_remote_code
        ).create_model_config()
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        # Without pydantic's account of itself, and without the names of three hundred others.
        words = str(error).rpartition("Value error, ")[2].partition("Supported architectures")[0]
        words = words.partition(" [type=")[0]
        raise UserError(f"vLLM cannot load model {model}: {words.strip()}") from error
