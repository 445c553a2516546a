"""Workers of Ray, and commands, as forks of one process that has imported vLLM and the like, and
Ray's own daemons as forks of another that has imported theirs.

Of the CPU time of a small training two thirds are imports, 11 s in each engine and each rank and
2.6 s in the daemons of a start of Ray; forks take one, and nothing. What is tested is the same: a
fork becomes a worker by Ray's own script, and one for whom a variable differs that imports have
read starts by itself. `start` is all that a run of the tests needs; tests of what a process takes
by itself remove the variable `SOCKET`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

_HERE = Path(__file__).parent
SOCKET = "STEPWISER_TESTS_PRELOADED"
"""Variable: where workers ask to be forked. Without it they start by themselves."""
FORKED_COMMAND = "STEPWISER_TESTS_FORKED_COMMAND"
"""Variable: what starts with it asks as well. No signal reaches the fork, so it is for commands
that are only waited for."""
_WAIT_S = 30.0


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Have all workers that this process's programs start be forks from now on.

    The process that they are forked from imports when it is first asked, by a worker or by `warm`,
    writes its log into the folder, and ends with this process, or when it is terminated.
    """
    address = folder / "preload"
    os.environ[SOCKET] = str(address)
    paths = (str(_HERE / "site"), str(ROOT), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    with (folder / "preload.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, str(_HERE / "server.py"), str(address)],
            stdout=log,
            stderr=log,
            process_group=0,
        )
    deadline = time.monotonic() + _WAIT_S
    while not address.exists() and server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if not address.exists():
        server.kill()
        raise RuntimeError((folder / "preload.log").read_text())
    return server


def warm() -> None:
    """Have it import now, so that the first worker need not wait."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:  # it has ended
        line.connect(os.environ[SOCKET])
        asked = json.dumps(None).encode()
        line.sendall(struct.pack("<I", len(asked)) + asked)


def log() -> str:
    """What the process has written that workers are forked from: which were not, and why."""
    return "".join(file.read_text() for file in _files("log"))


def forks() -> dict[int, int]:
    """Process ids of the workers, by those of the processes that Ray has started for them.

    Each of the two ends with the other; only the first has Ray for its parent.
    """
    rows = [row for file in _files("forks") for row in file.read_text().splitlines()]
    return dict(map(int, row.split()) for row in rows)  # type: ignore[misc]


def _files(kind: str) -> list[Path]:
    address = Path(os.environ.get(SOCKET, "none"))
    return sorted(address.parent.glob(f"{address.name}*.{kind}"))


def spawn_ranks(function: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Run ``function(rank, *arguments)`` in as many processes, forks with the imports; waits."""
    from torch import multiprocessing

    os.environ[FORKED_COMMAND] = "1"
    try:
        multiprocessing.spawn(function, args=arguments, nprocs=ranks)
    finally:
        del os.environ[FORKED_COMMAND]
