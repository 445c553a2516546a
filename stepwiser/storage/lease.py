"""Work that one of several owners does at a time, by files that all of them see.

An owner that lives changes a file of its own again and again. Work is taken by creating its lease,
or by replacing one that is given back, or whose owner's file has not changed for a while: as seen
from here, by this process's own clock, so that the clocks of machines need not agree. An owner that
was only slow may find its work taken; so a lease saves double work, and what must count once is
created by `Storage.create`.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stepwiser.storage.interface import Storage


@dataclass
class Leases:
    """One owner's view of all leases below a folder; any thread may call it."""

    storage: Storage
    folder: str
    owner: str
    """Of this process alone: a name that is used again would keep the work of the one before."""
    silent_s: float = 60.0
    """An owner whose file does not change for so long is taken for dead."""
    clock: Callable[[], float] = time.monotonic
    _beats: int = 0
    _held: dict[str, str] = field(default_factory=dict)
    """Versions of the leases that were taken, by the name of the work."""
    _seen: dict[str, tuple[bytes | None, float]] = field(default_factory=dict)
    """What each owner's file last held, and since when."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def renew(self) -> None:
        """Say that this owner lives; once before the first `take`, then every third of
        ``silent_s``: one request, however many leases it holds."""
        self._beats += 1
        text = json.dumps({"beat": self._beats, "time": time.time()})
        self.storage.put(self._owner_file(self.owner), text.encode())

    def take(self, work: str) -> bool:
        """Whether the work is this owner's now; False where another has it.

        Taking over from a dead owner wants two looks, ``silent_s`` apart.
        """
        name = self._file(work)
        if self.storage.create(name, self._text(self.owner)):
            version = self.storage.read_version(name)[1]
        else:
            try:
                data, before = self.storage.read_version(name)
            except FileNotFoundError:
                return False  # ended in this moment
            other = _owner_of(data)
            if other and other != self.owner and self._lives(other):
                return False
            swapped = self.storage.swap(name, self._text(self.owner), before)
            if swapped is None:
                return False
            version = swapped
        with self._lock:
            self._held[work] = version
        return True

    def give_back(self, work: str) -> None:
        """Let others have the work at once; nothing where another has taken it already."""
        with self._lock:
            version = self._held.pop(work, None)
        if version is not None:
            self.storage.swap(self._file(work), self._text(""), version)

    def end(self, work: str) -> None:
        """The work is done, and nobody is to take it again: its result says so, not its lease."""
        with self._lock:
            self._held.pop(work, None)
        self.storage.remove(self._file(work))

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

    def _lives(self, owner: str) -> bool:
        try:
            data: bytes | None = self.storage.read(self._owner_file(owner))
        except FileNotFoundError:
            data = None
        now = self.clock()
        with self._lock:
            before, since = self._seen.get(owner, (b"", now))
            if before != data:
                since = now
            self._seen[owner] = data, since
        return now - since < self.silent_s

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
