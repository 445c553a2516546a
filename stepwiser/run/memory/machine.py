"""What a machine has for a run: the memory at which something is killed, not what is built in."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

VARIABLE, THRESHOLD = "RAY_memory_usage_threshold", 0.95
"""Share of a machine's memory at which Ray begins to kill, and what changes it."""


@dataclass(frozen=True)
class Node:
    """One machine. Sizes are bytes."""

    name: str
    limit: float | None
    """What all processes together may have; None where nobody knows."""
    others: float
    """What other programs have of it now."""
    cpus: float
    gpus: float
    gpu_limit: float | None
    """Memory of one GPU; None where nobody knows."""


def this_machine(cpus: float, gpus: float, gpu_limit: float | None) -> Node:
    """Where this process runs: a container's limit counts, where there is one."""
    total, used = _memory()
    return Node("this machine", total * threshold(), used, cpus, gpus, gpu_limit)


def threshold() -> float:
    """Share of the memory at which Ray kills."""
    with contextlib.suppress(ValueError):
        return float(os.environ.get(VARIABLE, THRESHOLD))
    return THRESHOLD


def gpu_memory() -> float | None:
    """Bytes of the smallest GPU of this machine, as its driver says; None where it has none."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return min(float(line) for line in found.stdout.split()) * 2**20
    return None


def _memory() -> tuple[float, float]:
    """Bytes there are and bytes in use, of the machine or of the tightest limit around this
    process."""
    machine = psutil.virtual_memory()
    tightest = (float(machine.total), float(machine.total - machine.available))
    for group in _groups():
        found = _group_memory(group)
        if found is not None and found[0] < tightest[0]:
            tightest = found
    return tightest


def _groups(root: Path = Path("/sys/fs/cgroup")) -> Iterator[Path]:
    """Control groups of this process, its own first."""
    yield root
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory"):
                folder = root / kinds / path.lstrip("/")
                yield from [folder, *folder.parents][: len(folder.parts) - len(root.parts)]


def _group_memory(folder: Path) -> tuple[float, float] | None:
    """Limit and use of a control group, cached files left out; None without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            most = float((folder / limit).read_text())  # `max` is no number
            held = float((folder / used).read_text())
            counts = dict(line.split() for line in (folder / "memory.stat").open())
            files = sum(float(counts.get(f"{kind}_file", 0)) for kind in ("active", "inactive"))
            return most, max(0.0, held - files)
    return None
