"""From what a person writes to the place that is meant."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stepwiser.config.addresses import local_path, object_address
from stepwiser.errors import UserError
from stepwiser.storage.folder import Folder
from stepwiser.storage.interface import Storage
from stepwiser.storage.objects import Objects


def open_storage(name: str, place: str | Path) -> Storage:
    """The storage at a path or an address; ``name`` is the key or option that says so.

    Raises UserError for an address that no storage is known for.
    """
    address = object_address(place)
    if address is not None:
        # A fork has none of its parent's threads; and where the environment changes, so may all.
        return _objects(address, os.getpid(), os.environ.get("AWS_ENDPOINT_URL"))
    return Folder(local_path(name, place))


@functools.lru_cache(maxsize=32)
def _objects(address: str, process: int, endpoint: str | None) -> Objects:
    """One for all who ask: each has connections of its own."""
    return Objects(address)


def absolute(place: str | Path) -> str:
    """A path that is the same in every working directory; an address as it is."""
    return object_address(place) or str(Path(place).resolve())


def working_copy(address: str) -> Path:
    """The folder of this machine for copies of what lies at an address; it can be deleted.

    In the user's cache (`XDG_CACHE_HOME`), and the same for all processes of a user.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    return cache / "stepwiser" / "runs" / f"{address.rpartition('/')[2]}-{digest}"


@contextlib.contextmanager
def file_here(place: str) -> Iterator[Path]:
    """A file at a path or an address, on this machine while the block lasts.

    Raises UserError where there is none.
    """
    if object_address(place) is None:
        yield Path(place)
        return
    folder, _, name = place.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="stepwiser-") as temporary:
        try:
            open_storage("run_dir", folder).fetch(name, Path(temporary) / name)
        except FileNotFoundError as error:
            raise UserError(f"{place} is not there: run the stage that makes it") from error
        yield Path(temporary) / name
