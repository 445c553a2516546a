"""What every place of files can do."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Storage(Protocol):
    """Files below one place, by names as `units/0f3a.json`.

    A file appears whole or not at all, and a reader sees the newest whole one, in every process and
    on every machine. Nothing is renamed. All methods block, and may be called from any thread.

    A place that cannot be read or written raises UserError with what to do about it, after tries
    whose time is bounded.
    """

    place: str
    """The path or the address that all names are below."""

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError where there is none."""
        ...

    def read_version(self, name: str) -> tuple[bytes, str]:
        """The whole file, and what `swap` wants to know of it. Raises as `read`."""
        ...

    def fetch(self, name: str, target: Path) -> None:
        """Copy the file to a path of this machine, where it appears whole. Raises as `read`."""
        ...

    def put(self, name: str, data: bytes | Path) -> None:
        """Write a file, or replace it; a path gives the bytes of that file."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that must not be there yet; whether it is this one that is there now.

        Of several writers exactly one is told True, unless they write the very same bytes: so the
        bytes say who wrote them.
        """
        ...

    def swap(self, name: str, data: bytes, version: str) -> str | None:
        """Replace a file that still has this version; its new one, or None where it has not.

        As for `create`, the bytes say who wrote them, and never come back. None may be wrong where
        the answer was lost and another has replaced these bytes since: what must count once is
        created.
        """
        ...

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """All files below a folder, sorted; none for a folder that is not there."""
        ...

    def remove(self, name: str) -> None:
        """Take a file away; nothing where there is none."""
        ...

    def holds_conditions(self) -> bool:
        """Whether `create` and `swap` let exactly one of several writers through.

        Asked of the place itself: some object stores take no notice of the condition.
        """
        ...
