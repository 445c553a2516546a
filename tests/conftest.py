"""What every test shares: a quiet offline environment, a local Ray, the public data sets."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import preload
from tests.support.paths import SHARED_DATA
from tests.support.scratch import Leftovers, isolate
from tests.support.timeouts import tell_before_the_end

SCRATCH = isolate()
KEPT = ("PYTEST_", "WANDB_")
"""Variables of pytest, and of a service of this process that ends with it."""
# Set before anything imports Ray, vLLM or tokenizers, which read these once; processes they start
# inherit them. OMP_NUM_THREADS is forced: several engines share two cores in many of the tests.
os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    VLLM_NO_USAGE_STATS="1",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    HYPOTHESIS_STORAGE_DIRECTORY=str(SCRATCH / "hypothesis"),
)
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every command
# that they start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Workers of xdist share their parent's.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["HF_HOME"] = str(SCRATCH / "huggingface")
    # What vLLM finds out of an architecture in a process of its own, it keeps there, and torch
    # what it compiles for it.
    os.environ["VLLM_CACHE_ROOT"] = str(SCRATCH / "vllm")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(SCRATCH / "inductor")
PRELOADED = None if "PYTEST_XDIST_WORKER" in os.environ else preload.start(SCRATCH)
# What is told to end cleans up as after Ctrl-C.
signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    if any(character.isspace() for character in sys.executable):
        raise pytest.UsageError(
            "Ray cannot start workers with an interpreter whose path has a space"
            f" ({sys.executable}); run .venv/bin/pytest, which `make setup` gave a path without one"
        )


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer() -> Generator[None, Any, Any]:
    done = yield
    tell_before_the_end(SCRATCH)
    return done


def pytest_unconfigure(config: pytest.Config) -> None:
    # pytest leaves the folder in which it would keep the files of failed tests.
    base = getattr(config._tmp_path_factory, "_basetemp", None)  # type: ignore[attr-defined]
    if base is not None and base.parent.name.startswith("pytest-of-"):
        with contextlib.suppress(OSError):  # there are such files
            base.parent.rmdir()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files that may take longest come first: of several workers none begins one when the others are
    # done (`--no-loadscope-reorder` keeps xdist from another order).
    longest: dict[Path, float] = {}
    for item in items:
        timeout = item.get_closest_marker("timeout")
        if item.get_closest_marker("slow"):
            own = float(timeout.args[0]) if timeout else 1.0
            longest[item.path] = max(own, longest.get(item.path, 0.0))
    items.sort(key=lambda item: -longest.get(item.path, 0.0))
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_items:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, torch sees none"))


def pytest_collection_finish(session: pytest.Session) -> None:
    if "llvmlite" in sys.modules:
        raise pytest.UsageError(
            "a test module imports llvmlite (by numba), beside which vLLM starts no engine in this "
            "process: import it in a process of its own"
        )
    if any(item.get_closest_marker("slow") for item in session.items):
        preload.warm()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with gsm8k/, math/ and processbench/; skips where a checkout has none beside it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the public data sets are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fails the run where processes, shared memory or folders outlive its tests."""
    leftovers = Leftovers(SCRATCH)
    yield
    if PRELOADED is not None:
        PRELOADED.kill()
        PRELOADED.wait()
    left = leftovers.find()
    assert not left, "the tests have left:\n" + "\n".join(left)


@pytest.fixture(scope="module", autouse=True)
def environment_stays() -> Iterator[None]:
    """Variables that engines set in this process (`LD_PRELOAD` among them) are not handed on to the
    programs of other modules' tests."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        if not name.startswith(KEPT):
            del os.environ[name]
    os.environ.update({n: v for n, v in before.items() if not n.startswith(KEPT)})


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """A Ray of the module's own with four logical CPUs, whatever the machine has."""
    from cluster.local_nodes import local_cluster
    from serve.proxy_errors import ENVIRONMENT

    # Ray Train starts its workers elsewhere.
    environment = {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    environment |= ENVIRONMENT
    head = {"object_store_memory": 256 * 2**20}
    with local_cluster(4, head, runtime_env={"env_vars": environment}):
        yield
