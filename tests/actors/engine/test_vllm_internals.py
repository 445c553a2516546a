"""Whether the installed vLLM still has what `vllm_internals` takes from inside it, and where."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from actors.engine import vllm_internals
from actors.engine.engine import Engine
from actors.engine.vllm_internals import INTERNALS, Internal
from tests.support.engines import running_engine
from tests.support.paths import ROOT
from tests.support.tiny import make_tiny_model

ANOTHER_PROCESS = {"SyncMPClient", "BackgroundResources", "EngineCoreOutputs", "SchedulerStats"}
"""Classes of which an engine whose core runs in the same process has no instance."""
ABSENT = object()


def _versions(internal: Internal) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The installed vLLM's and the first that had the internal, as major and minor numbers."""
    import vllm

    first = tuple(int(part) for part in internal.read_in[0].split("."))
    return tuple(int(part) for part in vllm.__version_tuple__[:2]), first


def _message(internal: Internal, trouble: str) -> str:
    import vllm

    return (
        f"vLLM {vllm.__version__}: {internal.where} {trouble}. It was read in vLLM "
        f"{' and '.join(internal.read_in)}; adapt {internal.used_in} in "
        f"{Path(vllm_internals.__file__).relative_to(ROOT)} (and its entry in INTERNALS) to where "
        f"this version has it. No documented call serves: {internal.why}."
    )


def _look_up(where: str) -> Any:
    """What a place names: an object, None for an attribute of instances only, or ABSENT."""
    module, _, names = where.partition(":")
    try:
        holder: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not error.name or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that vLLM needs, not what we look for
        return ABSENT
    *outer, last = names.split(".")
    for name in outer:
        if (holder := getattr(holder, name, ABSENT)) is ABSENT:
            return ABSENT
    found = getattr(holder, last, ABSENT)
    return None if found is ABSENT and last in _instance_attributes(holder) else found


@cache
def _instance_attributes(holder: Any) -> frozenset[str]:
    """Attributes that a class of vLLM's or one of its bases declares or sets on itself."""
    found: set[str] = set()
    for base in inspect.getmro(holder) if inspect.isclass(holder) else ():
        if base.__module__.startswith("vllm."):
            found |= inspect.get_annotations(base).keys()
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base)))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    found |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return frozenset(found)


def _names_in(used_in: str) -> set[str]:
    """Attributes, imports, strings and keywords in the source of something of `vllm_internals`."""
    found: Any = vllm_internals
    for name in used_in.split("."):
        found = getattr(found, name)
    source = textwrap.dedent(inspect.getsource(getattr(found, "fget", None) or found))
    names = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr=name) | ast.alias(name=name) | ast.keyword(arg=str(name)):
                names.add(name)
            case ast.Constant(value=str(name)):
                names.add(name)
    return names


@pytest.fixture(scope="module", autouse=True)
def _no_compiler():
    """vLLM is imported here before an engine is made, which would have set this first."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda i: i.where.partition(":")[2])
def test_vllm_has_it_where_it_was_read(internal):
    wanted = {internal.where.replace(":", ".").rpartition(".")[2], internal.keyword} - {""}
    unused = wanted - _names_in(internal.used_in)
    assert not unused, f"{internal.used_in} no longer uses {unused}: correct INTERNALS"
    found = _look_up(internal.where)
    if found is ABSENT:
        installed, first = _versions(internal)
        if installed < first:
            pytest.skip(f"vLLM {internal.read_in[0]} was the first to have it")
        pytest.fail(_message(internal, "is no longer there"))
    if internal.keyword and internal.keyword not in inspect.signature(found).parameters:
        pytest.fail(_message(internal, f"takes no {internal.keyword}"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Iterator[Engine]:
    model = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    small = {"max_model_len": 64, "max_num_seqs": 4, "kv_cache_bytes": 16 * 2**20}
    with running_engine(model, **small) as engine:
        yield engine


def test_a_running_engine_is_made_of_them(engine):
    """What only instances have is on those that an engine holds, each within the one before."""
    llm = engine._core._llm
    worker = llm.model_executor.driver_worker.worker
    objects = [llm, llm.model_config, worker, worker.get_model()]
    moved = []
    for internal in INTERNALS:
        holder, _, name = internal.where.partition(":")[2].rpartition(".")
        if holder in ANOTHER_PROCESS or _look_up(internal.where) is not None:
            continue
        holders = [o for o in objects if holder in {kind.__name__ for kind in type(o).__mro__}]
        values = [getattr(o, name) for o in holders if hasattr(o, name)]
        objects += values
        if not values:
            moved.append(_message(internal, "is not part of a running engine"))
    assert not moved, "\n".join(moved)


def test_nothing_of_vllm_is_loaded_before_an_engine_is_made():
    code = (
        "import sys, actors.engine.vllm_internals\n"
        "sys.exit(str({'vllm', 'torch'} & sys.modules.keys() or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert done.stderr.strip() == b"", done.stderr.decode()
