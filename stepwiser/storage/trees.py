"""Folders of large files at an address, as models are: they appear whole, and are replaced whole.

Every version of a folder has files of its own, below a name that is used once; `files.json` says
which version counts. It is put last, so that a reader finds all files of the version it has read
of, or, where that has just been replaced, reads `files.json` again.
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


def read_version(storage: Storage) -> Version | None:
    """What the folder at a storage's place holds now; None where there is none.

    Raises UserError, naming it, for a list that cannot be read.
    """
    try:
        found = json.loads(storage.read(LIST))
        return Version(str(found["version"]), {str(k): str(v) for k, v in found["files"].items()})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{storage.place}/{LIST} cannot be read: {error}; delete it and run the stage that "
            "makes this folder again"
        ) from error


def publish(folder: Path, storage: Storage) -> None:
    """Make a folder of this machine what lies at the storage's place, in place of what did."""
    before = read_version(storage)
    name = secrets.token_hex(6)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        list(threads.map(lambda file: storage.put(f"{name}/{file}", folder / file), files))
    prints = {file: fingerprint(folder / file) for file in files}
    storage.put(LIST, json.dumps({"version": name, "files": prints}, indent=1).encode())
    for file in before.files if before else ():
        storage.remove(f"{before.name}/{file}" if before else file)


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
