"""A part in a process of its own: ended at its time with all that it has started.

Ray's daemons and vLLM's cores are no children of a part for long, as what starts them may end
first. So this process adopts every orphan below it, and what is there after a part belongs to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.command import CONFIG

State = Literal["done", "failed", "out of time"]

_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl."""
END_S = 8.0
"""What a part has to end by itself, once its time is up."""


def adopt_orphans() -> None:
    """Make this process the parent of whatever its descendants leave."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl cannot make this process adopt orphans")


def environment(out: Path, scratch: Path, dry: bool) -> dict[str, str]:
    """Variables of every part: no network, and all that libraries keep in folders of the drill,
    where the user has named no others.

    ``scratch`` has to be short: Ray's sockets lie in it.
    """
    cache = out / "cache"
    kept = {
        "XDG_CACHE_HOME": str(cache),
        "XDG_CONFIG_HOME": str(cache / "config"),
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "VLLM_CONFIG_ROOT": str(cache / "config" / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TRITON_HOME": str(cache),
        "FLASHINFER_WORKSPACE_BASE": str(cache),
        "CUDA_CACHE_PATH": str(cache / "nv"),
        "HF_HOME": str(cache / "huggingface"),
    }
    own = {
        "PYTHONPATH": str(CONFIG.parent.parent),
        "TMPDIR": str(scratch),
        "RAY_TMPDIR": str(scratch),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "offline",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        # Ray of one machine, at its loopback address: there need be no other.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # A token of our own leaves that of the user, in the home folder, alone.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    if dry:
        own |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    else:
        # Fractions of a GPU must be those of one and the same.
        cards = os.environ.get("CUDA_VISIBLE_DEVICES") or "0"
        own |= {"CUDA_VISIBLE_DEVICES": cards.partition(",")[0]}
        own |= {"DS_ACCELERATOR": "cuda", "DS_BUILD_OPS": "0"}
    inherited = {n: v for n, v in os.environ.items() if n != "RAY_ADDRESS"}
    # A library that the box has elsewhere is found by the user's own path.
    if "PYTHONPATH" in inherited:
        own["PYTHONPATH"] += os.pathsep + inherited["PYTHONPATH"]
    return kept | inherited | own


def run_part(
    name: str, settings: Path, log: Path, variables: Mapping[str, str], seconds: float
) -> State:
    """Run a part to its end, or to that of its time; nothing of it runs afterwards."""
    command = [sys.executable, "-m", "benchmarks.gpu_drill.part", name, str(settings)]
    return run_command(command, log, variables, seconds)


def run_command(
    command: Sequence[str], log: Path, variables: Mapping[str, str], seconds: float
) -> State:
    """The same for any command."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return "done" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            return "out of time"
        finally:
            running = process.poll() is None
            if running:
                process.send_signal(signal.SIGTERM)
            end_descendants(END_S if running else 0.0)
            process.wait()


def end_descendants(patience_s: float) -> None:
    """End every process below this one, those that it adopted included."""
    began = time.monotonic()
    while left := _descendants():
        seconds = time.monotonic() - began
        if seconds > patience_s + END_S:
            raise RuntimeError(f"processes cannot be ended: {', '.join(map(str, left))}")
        if seconds > patience_s:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        time.sleep(0.05)


def _descendants() -> list[psutil.Process]:
    """Those that run; those that have ended are taken off the kernel's list where they are ours."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            if process.status() == psutil.STATUS_ZOMBIE:
                process.wait(0)
            else:
                found.append(process)
    return found
