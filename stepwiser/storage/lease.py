"""Work that one of several owners does at a time, by files that all of them see.

An owner that lives changes a file of its own again and again. Work is taken by creating its lease,
or by replacing one that is given back, or whose owner's file has not changed for a while: as seen
from here, by this process's own clock, so that the clocks of machines need not agree. A process of
this machine that is no more loses its work at once. An owner that was only slow may find its work
taken; so a lease saves double work, and what must count once is created by `Storage.create`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from stepwiser.storage.interface import Storage

T = TypeVar("T")
R = TypeVar("R")

SILENT_S = 60.0
"""An owner whose file does not change for so long is taken for dead."""
AT_ONCE = 16
"""Requests under way where there are many."""


def at_once(call: Callable[[T], R], items: Collection[T]) -> list[R]:
    """What a call makes of each, several at a time where there are several."""
    if len(items) < 2:
        return [call(item) for item in items]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(call, items))


def new_owner() -> str:
    """A name of this process alone: its machine's, and a few digits."""
    machine = re.sub(r"[^A-Za-z0-9-]", "-", os.uname().nodename.partition(".")[0])
    return f"{machine or 'host'}-{secrets.token_hex(3)}"


def this_process() -> dict[str, Any]:
    """What others on this machine need to see whether this process is still there; nothing where
    the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # A container counts its processes by itself, whatever the machine is called.
        space = Path("/proc/self/ns/pid").readlink()
        started = _started(os.getpid())
    except OSError:
        return {}
    machine = f"{os.uname().nodename} {boot} {space}"
    return {"machine": machine, "pid": os.getpid(), "started": started}


def _started(pid: int) -> str:
    """When a process began, in ticks since the machine did; empty where there is none."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def has_ended(process: Mapping[str, Any]) -> bool:
    """Whether it was a process of this machine and is no more; False where that cannot be said."""
    here = this_process()
    if not here or process.get("machine") != here["machine"]:
        return False
    return _started(int(process["pid"])) != process["started"]


@dataclass
class Leases:
    """One owner's view of all leases below a folder; any thread may call it."""

    storage: Storage
    folder: str
    owner: str
    """Of this process alone: a name that is used again would keep the work of the one before."""
    silent_s: float = SILENT_S
    clock: Callable[[], float] = time.monotonic
    process: Mapping[str, Any] = field(default_factory=this_process)
    _beats: int = 0
    _held: set[str] = field(default_factory=set)
    _seen: dict[str, tuple[bytes | None, float]] = field(default_factory=dict)
    """What each owner's file last held, and since when."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def renew(self, said: Mapping[str, Any] | None = None) -> None:
        """Say that this owner lives, and what else others are to know; once before the first
        `take`, then every third of ``silent_s``: one request, however many leases it holds."""
        with self._lock:
            self._beats += 1
            about = {"beat": self._beats, "time": time.time(), "process": dict(self.process)}
        text = json.dumps({**(said or {}), **about})
        self.storage.put(self._owner_file(self.owner), text.encode())

    def take(self, work: str) -> bool:
        """Whether the work is this owner's now; see `claim`."""
        return self.claim(work) == self.owner

    def claim(self, work: str) -> str:
        """Take the work if that can be; returns who has it now, empty where nobody may have.

        Taking over from an owner elsewhere that is dead wants two looks, ``silent_s`` apart.
        """
        name = self._file(work)
        if not self.storage.create(name, self._text(self.owner)):
            try:
                data, before = self.storage.read_version(name)
            except FileNotFoundError:
                return ""  # ended in this moment
            other = _owner_of(data)
            if other and other != self.owner and self._lives_now(other):
                return other
            if self.storage.swap(name, self._text(self.owner), before) is None:
                return ""
        with self._lock:
            self._held.add(work)
        return self.owner

    def give_back(self, work: str) -> None:
        """Let others have the work at once; nothing where another has taken it already."""
        with self._lock:
            held = work in self._held
            self._held.discard(work)
        if not held:
            return
        try:
            data, version = self.storage.read_version(self._file(work))
        except FileNotFoundError:
            return
        if _owner_of(data) == self.owner:
            self.storage.swap(self._file(work), self._text(""), version)

    def end(self, work: str) -> None:
        """The work is done, and nobody is to take it again: its result says so, not its lease."""
        with self._lock:
            self._held.discard(work)
        self.storage.remove(self._file(work))

    def leave(self) -> None:
        """Give everything back, and be no owner any more."""
        with self._lock:
            held = list(self._held)
        at_once(self.give_back, held)
        self.storage.remove(self._owner_file(self.owner))

    def others(self) -> dict[str, dict[str, Any]]:
        """What every other owner has said last, those that are dead among them."""
        names = [file.rpartition("/")[2].removesuffix(".json") for file in self._owner_files()]
        others = [name for name in names if name != self.owner]
        found = zip(others, at_once(self._hear, others), strict=True)
        return {name: json.loads(data) for name, data in found if data is not None}

    def lives(self, owner: str) -> bool:
        """Whether an owner lived when it was looked at last; of one that never was, that is not
        known, and it counts as living."""
        now = self.clock()
        with self._lock:
            data, since = self._seen.get(owner, (None, now))
        if data is not None and has_ended(json.loads(data).get("process") or {}):
            return False
        return now - since < self.silent_s

    def owners(self) -> dict[str, list[str]]:
        """Who holds what, by owner; those that are dead among them."""
        found: dict[str, list[str]] = {}
        for name in self.storage.names(f"{self.folder}/taken"):
            try:
                owner = _owner_of(self.storage.read(name))
            except FileNotFoundError:
                continue
            if owner:
                work = name.removeprefix(f"{self.folder}/taken/").removesuffix(".json")
                found.setdefault(owner, []).append(work)
        return found

    def clear(self) -> None:
        """Take away what dead owners have left; only when all work is done."""
        dead = [name for name in self.others() if not self.lives(name)]
        left = self.storage.names(f"{self.folder}/taken")
        at_once(self.storage.remove, [*left, *map(self._owner_file, dead)])

    def _lives_now(self, owner: str) -> bool:
        self._hear(owner)
        return self.lives(owner)

    def _hear(self, owner: str) -> bytes | None:
        try:
            data: bytes | None = self.storage.read(self._owner_file(owner))
        except FileNotFoundError:
            data = None
        now = self.clock()
        with self._lock:
            before, since = self._seen.get(owner, (b"", now))
            self._seen[owner] = data, since if before == data else now
        return data

    def _owner_files(self) -> list[str]:
        return self.storage.names(f"{self.folder}/owners")

    def _owner_file(self, owner: str) -> str:
        return f"{self.folder}/owners/{owner}.json"

    def _file(self, work: str) -> str:
        return f"{self.folder}/taken/{work}.json"

    def _text(self, owner: str) -> bytes:
        # Never the same twice, as a swap wants it.
        return json.dumps({"owner": owner, "id": secrets.token_hex(8)}).encode()


def _owner_of(data: bytes) -> str:
    found: Any = json.loads(data)
    return str(found["owner"])
