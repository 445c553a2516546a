"""Workers really are forks, as nothing else would show but the time that all tests take."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import time
from pathlib import Path

import pytest
import ray

from tests.support import preload


def _looks() -> tuple[bool, bool, bool]:
    """Whether vLLM and Ray's libraries were there before they were asked for, who started this, and
    what vLLM says."""
    preloaded = {"vllm.v1.engine.llm_engine", "ray.data", "ray.train.torch"} <= sys.modules.keys()
    parent = Path(f"/proc/{os.getppid()}/cmdline").read_text()
    from vllm.v1.executor import ray_utils

    return preloaded, "preload/server.py" in parent, ray_utils.ray is not None


def _draws() -> str:
    """A name that Ray draws at random."""
    from ray import UniqueID

    return UniqueID.from_random().hex()


@pytest.mark.slow
def test_a_worker_is_a_fork_unless_its_variables_are_others(ray_local):
    import torch

    if torch.cuda.is_available():
        pytest.skip("where there is a GPU workers start by themselves")
    with_ray = Path(f"{os.environ[preload.SOCKET]}.with-ray")
    deadline = time.monotonic() + 60.0
    while not with_ray.exists() and time.monotonic() < deadline:
        time.sleep(0.1)  # until then they are forks of the first process
    look = ray.remote(_looks)
    variables = {"PYTHONPATH": os.environ["PYTHONPATH"], "ANY": "other, for a new worker"}
    looked = ray.get(look.options(runtime_env={"env_vars": variables}).remote())
    assert looked == (True, True, True), preload.log()
    # Else requests of several workers have one name, and whom they ask ends.
    draw = ray.remote(_draws)
    each = [{"env_vars": variables | {"ANY": other}} for other in ("first", "second")]
    names = ray.get([draw.options(runtime_env=its_own).remote() for its_own in each])
    assert names[0] != names[1]
    others = variables | {"HF_HOME": "elsewhere"}
    preloaded, *_ = ray.get(look.options(runtime_env={"env_vars": others}).remote())
    assert not preloaded


def test_a_worker_starts_by_itself_where_forks_are_long_in_coming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A driver waits for ever for workers that Ray has given up.
    file = Path(__file__).with_name("site") / "sitecustomize.py"
    spec = importlib.util.spec_from_file_location("asks_for_forks", file)
    assert spec is not None and spec.loader is not None
    asking = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(asking)
    monkeypatch.setattr(asking, "_PATIENCE_S", 0.1)
    address = str(tmp_path / "silent")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(address)
        silent.listen()
        for name in (address, str(tmp_path / "nobody")):
            monkeypatch.setenv(preload.SOCKET, name)
            asking._become_fork(name)  # returns
