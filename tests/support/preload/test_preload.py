"""Workers really are forks, as nothing else would show but the time that all tests take."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import ray

from tests.support import preload

pytestmark = pytest.mark.slow


def _looks() -> tuple[bool, bool, bool]:
    """Whether vLLM was there before it was asked for, who started this, and what vLLM says."""
    preloaded = "vllm.v1.engine.llm_engine" in sys.modules
    parent = Path(f"/proc/{os.getppid()}/cmdline").read_text()
    from vllm.v1.executor import ray_utils

    return preloaded, "preload/server.py" in parent, ray_utils.ray is not None


def test_a_worker_is_a_fork_unless_its_variables_are_others(ray_local):
    import torch

    if torch.cuda.is_available():
        pytest.skip("where there is a GPU workers start by themselves")
    look = ray.remote(_looks)
    assert ray.get(look.remote()) == (True, True, True), preload.log()
    others = {"PYTHONPATH": os.environ["PYTHONPATH"], "HF_HOME": "elsewhere"}
    preloaded, *_ = ray.get(look.options(runtime_env={"env_vars": others}).remote())
    assert not preloaded
