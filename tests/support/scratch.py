"""Where a run of the tests puts what it does not keep, and what is left of it in the end."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.support.paths import ROOT

SHARED_MEMORY = Path("/dev/shm")
PARENT_LENGTH = 20
"""Ray puts its sockets 64 characters below its folder, paths of sockets have 107, and this run has
a folder in the parent, its workers have theirs in that, and Ray has one in each."""
LINGER_S = 20.0
"""What processes have to end in once the last test is over."""
HELPERS = re.compile(r"multiprocessing\.(resource_tracker|forkserver)")
"""Python's own, which end with the process that they help."""


def isolate() -> Path:
    """Give this process and all that it starts a folder of their own for temporary files.

    Ray keeps there what else would be in `/tmp/ray`, among it the address of "the" cluster, by
    which runs beside each other, and a user's own Ray, would find and disturb one another. Nothing
    that the user has set for Ray is inherited. Removed when this process ends.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:
        # Its parent was here before: the worker shares the token.
        folder = Path(os.environ["TMPDIR"]) / worker
        folder.mkdir()
    else:
        parent = tempfile.gettempdir()
        # pytest keeps the files of failed tests there, of the last three runs.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", parent)
        if len(parent) > PARENT_LENGTH or re.search(r"\s", parent):
            parent = "/tmp"
        folder = Path(tempfile.mkdtemp(prefix="sw-", dir=parent))
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            del os.environ[name]
        # Ray asks for a token by default; one of our own leaves the user's ~/.ray alone.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    tempfile.tempdir = str(folder)
    os.environ.update(TMPDIR=str(folder), RAY_TMPDIR=str(folder))
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Those that were started with the folder, or have something open there.

    The environment alone will not do: what sets the title of its process, as Ray's do, writes over
    it. But all of these have their logs open.
    """
    name = re.compile(re.escape(os.fsencode(folder)) + rb"(?![\w-])")
    us = psutil.Process()
    others = {us.pid, *(parent.pid for parent in us.parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in others or not _mentions(Path("/proc", str(process.pid)), name):
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            helper = HELPERS.search(" ".join(process.cmdline()))
            if not helper and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _mentions(entry: Path, name: re.Pattern[bytes]) -> bool:
    # Of another user, or at its end: not one of ours, or no longer.
    with contextlib.suppress(OSError):
        if name.search((entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()):
            return True
        for link in (entry / "cwd", *(entry / "fd").iterdir()):
            with contextlib.suppress(FileNotFoundError):
                if name.search(os.fsencode(os.readlink(link))):
                    return True
    return False


class Leftovers:
    """Compares the end with the beginning."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._began = time.time()
        self._here = self._entries()

    def _entries(self) -> set[Path]:
        outputs = {ROOT / name for name in ("wandb", "runs", "core")}
        return {path for path in outputs if path.exists()} | set(SHARED_MEMORY.glob("*"))

    def find(self) -> list[str]:
        """Processes, shared memory and folders that the tests have left; ends the processes."""
        if "wandb" in sys.modules:
            # Its service serves the whole process and ends with it.
            sys.modules["wandb"].teardown()
        deadline = time.monotonic() + LINGER_S
        while (processes := processes_of(self._folder)) and time.monotonic() < deadline:
            time.sleep(0.2)
        # What another worker's processes were killed with, their resource tracker removes.
        while (new := self._new()) and time.monotonic() < deadline:
            time.sleep(0.2)
        found = []
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(process.cmdline())[:200].rstrip()
                age = time.time() - process.create_time()
                found.append(
                    f"process {process.pid} of {process.ppid()}, {age:.0f} s old,"
                    f" {process.status()}: {command}"
                )
                process.kill()
        found += [str(path) for path in self._folder.glob("sw-*")]
        return found + new

    def _new(self) -> list[str]:
        new = self._entries() - self._here
        return [str(path) for path in new if path.parent != SHARED_MEMORY or self._is_ours(path)]

    def _is_ours(self, path: Path) -> bool:
        """Whether a segment may be of this run: it is new, and of nobody who lives."""
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if status.st_uid == os.getuid() and status.st_mtime >= self._began:
                return not _is_mapped(path)
        return False


def _is_mapped(path: Path) -> bool:
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if str(path) in maps.read_text():
                return True
    return False
