"""Files that grow by lines, as logs do, where no file grows.

In a folder that is one file. In a bucket it is a folder of that name: every process that adds lines
writes parts of its own, and puts the part that it is at again, whole, when it has more. So no two
writers meet, a reader sees whole lines only, and what is put for one line is bounded.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stepwiser.storage.folder import Folder, writing
from stepwiser.storage.interface import Storage

PART = 2**20
"""Bytes after which a writer begins another part."""
SOME_S = 5.0
"""As long a line may wait for others to be put with it, if it does not have to be there at once."""
AT_ONCE = 16
"""Parts that are read at the same time."""


def add_line(storage: Storage, name: str, line: str, *, at_once: bool = True) -> None:
    """Add a line to a growing file; safe while other processes add to the same file.

    ``at_once``: else it may wait, for seconds or for a line that is at once; a process that is
    killed takes lines that wait along.
    """
    if isinstance(storage, Folder):
        _add_to_file(storage.root / name, line)
    else:
        _writer(storage, name).add(line, at_once)


def read_lines(storage: Storage, name: str, target: Path) -> bool:
    """Bring a growing file of a bucket to a path of this machine; whether there is one.

    The parts come in the order in which they were begun.
    """
    parts = storage.names(name)
    if not parts:
        return False
    with (
        writing(target) as temporary,
        temporary.open("wb") as file,
        ThreadPoolExecutor(AT_ONCE) as threads,
    ):
        for data in threads.map(storage.read, parts):
            file.write(data)
    return True


def line_bytes(storage: Storage, name: str) -> bytes:
    """What a growing file holds now, the lines of each writer in their order; empty where there is
    none. The last line may not be whole."""
    if isinstance(storage, Folder):
        file = storage.root / name
        return file.read_bytes() if file.is_file() else b""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return b"".join(threads.map(storage.read, storage.names(name)))


def _add_to_file(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # One write a line, unbuffered: lines of several threads do not mix, and a reader in another
    # terminal sees whole ones, or a last one without its newline, which readers leave out.
    with path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                line = "\n" + line  # after what a killed process or a full disk cut off
        file.write(line.encode() + b"\n")


class _Writer:
    """What this process adds to one growing file of a bucket."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        self._lock = threading.Lock()
        self._put_at = 0.0
        self._begin()

    def _begin(self) -> None:
        # By time, so that parts of a process that comes later are read later.
        self._part = f"{self._name}/{time.time_ns():020d}-{secrets.token_hex(4)}"
        self._lines = bytearray()

    def add(self, line: str, at_once: bool) -> None:
        with self._lock:
            self._lines += line.encode() + b"\n"
            if not at_once and time.monotonic() - self._put_at < SOME_S:
                return
            self._storage.put(self._part, bytes(self._lines))
            self._put_at = time.monotonic()
            if len(self._lines) > PART:
                self._begin()


_WRITERS: dict[tuple[int, str, str], _Writer] = {}
_LOCK = threading.Lock()


def _writer(storage: Storage, name: str) -> _Writer:
    # A fork is another process: it must not put what its parent has.
    key = os.getpid(), storage.place, name
    with _LOCK:
        if key not in _WRITERS:
            _WRITERS[key] = _Writer(storage, name)
        return _WRITERS[key]
