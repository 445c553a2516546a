"""Folders of large files at an address, as models are: they appear whole, and are replaced whole.

Every version of a folder has files of its own, below a name that is used once; `files.json` says
which version counts. It is put last, so that a reader finds all files of the version it has read
of, or, where that has just been replaced, reads `files.json` again.

A folder may lie below another one's place, and be made what that one holds: nothing is copied.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from stepwiser.errors import UserError
from stepwiser.storage.interface import Storage

LIST = "files.json"
FILES_AT_ONCE = 4


@dataclass(frozen=True)
class Version:
    """What a folder holds."""

    name: str
    files: dict[str, str]
    """`fingerprint` of each file, by its path in the folder."""


def fingerprint(file: Path, sample: int = 2**20) -> str:
    """Hash of a file's size, beginning and end: enough to tell training runs' weights apart."""
    digest = hashlib.sha256(str(file.stat().st_size).encode())
    with file.open("rb") as handle:
        digest.update(handle.read(sample))
        handle.seek(max(0, file.stat().st_size - sample))
        digest.update(handle.read())
    return digest.hexdigest()


def read_version(storage: Storage, below: str = "") -> Version | None:
    """What the folder at a storage's place, or at one below it, holds now; None where there is
    none.

    Raises UserError, naming it, for a list that cannot be read.
    """
    name = f"{below}/{LIST}" if below else LIST
    try:
        return _parsed(storage, name, storage.read(name))
    except FileNotFoundError:
        return None


def _parsed(storage: Storage, name: str, data: bytes) -> Version:
    try:
        found = json.loads(data)
        return Version(str(found["version"]), {str(k): str(v) for k, v in found["files"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{storage.place}/{name} cannot be read: {error}; delete it and run the stage that "
            "makes this folder again"
        ) from error


def publish(folder: Path, storage: Storage) -> None:
    """Make a folder of this machine what lies at the storage's place, in place of what did."""
    name = secrets.token_hex(6)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        list(threads.map(lambda file: storage.put(f"{name}/{file}", folder / file), files))
    _replace(storage, Version(name, {file: fingerprint(folder / file) for file in files}))


def add_file(storage: Storage, name: str, file: Path) -> None:
    """Put a file into the folder that lies at the storage's place.

    Raises FileNotFoundError where there is none, or another takes its place meanwhile.
    """
    data, now = storage.read_version(LIST)
    version = _parsed(storage, LIST, data)
    storage.put(f"{version.name}/{name}", file)
    whole = Version(version.name, {**version.files, name: fingerprint(file)})
    if whole != version and storage.swap(LIST, _list_of(whole), now) is None:
        raise FileNotFoundError(f"{storage.place} was replaced while {name} was put into it")


def adopt(storage: Storage, below: str) -> None:
    """Make what lies at a place below the storage's own what lies there, in place of what did.

    Raises FileNotFoundError where nothing lies below, or `clear` takes it away meanwhile.
    """
    version, before = read_version(storage, below), read_version(storage)
    if version is None:
        raise FileNotFoundError(f"{storage.place}/{below} holds no folder")
    adopted = Version(f"{below}/{version.name}", version.files)
    _put_list(storage, adopted)
    if not storage.exists(f"{below}/{LIST}"):
        # Whoever clears has not seen that these files are in use.
        if before is None:
            storage.remove(LIST)
        else:
            _put_list(storage, before)
        raise FileNotFoundError(f"{storage.place}/{below} was taken away")
    _remove_files(storage, before, adopted)
    storage.remove(f"{below}/{LIST}")


def clear(storage: Storage, below: str) -> None:
    """Take away what lies below a name, but for what the storage's own folder consists of."""
    names = storage.names(below)
    lists = {name for name in names if name.endswith(f"/{LIST}")}
    for name in lists:
        storage.remove(name)
    # Looked at after that: what is adopted from now on is given back by who adopts it.
    version = read_version(storage)
    for name in names:
        if name not in lists and not (version and name.startswith(f"{version.name}/")):
            storage.remove(name)


def _replace(storage: Storage, version: Version) -> None:
    before = read_version(storage)
    _put_list(storage, version)
    _remove_files(storage, before, version)


def _remove_files(storage: Storage, before: Version | None, now: Version) -> None:
    if before is not None and before.name != now.name:
        for file in before.files:
            storage.remove(f"{before.name}/{file}")


def _put_list(storage: Storage, version: Version) -> None:
    storage.put(LIST, _list_of(version))


def _list_of(version: Version) -> bytes:
    return json.dumps({"version": version.name, "files": version.files}, indent=1).encode()


def bring(storage: Storage, here: Path, *, without: Sequence[str] = ()) -> Path | None:
    """A folder of this machine, below ``here``, with what lies at the storage's place now.

    Files that are here already are not fetched again. ``without``: patterns of file names that are
    not wanted. None where nothing lies there.
    """
    for _ in range(3):
        version = read_version(storage)
        if version is None:
            return None
        folder = here / version.name
        wanted = [
            file
            for file in version.files
            if not any(fnmatch.fnmatch(Path(file).name, pattern) for pattern in without)
            and not (folder / file).is_file()
        ]
        # Files of a version that has been replaced meanwhile may be gone: then the next one's.
        with (
            contextlib.suppress(FileNotFoundError),
            ThreadPoolExecutor(FILES_AT_ONCE) as threads,
        ):
            for fetched in [
                threads.submit(storage.fetch, f"{version.name}/{file}", folder / file)
                for file in wanted
            ]:
                fetched.result()
            return folder
    raise UserError(
        f"{storage.place} lacks files that its {LIST} names: run the stage that makes it again"
    )
