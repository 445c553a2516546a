"""Files in a folder of this machine, or of a file system that it shares with others."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from stepwiser.errors import UserError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path that takes the final name only when the block succeeds.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    # Threads fetch copies of the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another "
            "run_dir, then start the same command again: finished work is kept"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file is one that `writing` has not finished."""
    return name.startswith(".") and name.endswith(".tmp")


class Folder:
    """`Storage` in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = str(root)

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, "no such file", name) from error

    def read_version(self, name: str) -> tuple[bytes, str]:
        data = self.read(name)
        return data, _version(data)

    def fetch(self, name: str, target: Path) -> None:
        source = self.root / name
        if not source.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
        with writing(target) as temporary:
            shutil.copyfile(source, temporary)

    def put(self, name: str, data: bytes | Path) -> None:
        with writing(self.root / name) as temporary:
            if isinstance(data, Path):
                shutil.copyfile(data, temporary)
            else:
                temporary.write_bytes(data)

    def create(self, name: str, data: bytes) -> bool:
        path = self.root / name
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        with writing(temporary) as whole:
            whole.write_bytes(data)
        try:
            # Unlike a rename, a link does not replace what is there.
            os.link(temporary, path)
        except FileExistsError:
            return path.read_bytes() == data
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; its file system has no hard links, which "
                "tell several writers apart: choose another run_dir"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def swap(self, name: str, data: bytes, version: str) -> str | None:
        path = self.root / name
        if not path.is_file():
            return None
        with path.with_name(f".{path.name}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file() or _version(path.read_bytes()) != version:
                return None
            self.put(name, data)
        return _version(data)

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def names(self, folder: str = "") -> list[str]:
        found = []
        for parent, _, files in os.walk(self.root / folder):
            below = Path(parent).relative_to(self.root)
            found += [
                (below / name).as_posix()
                for name in files
                if not is_temporary(name) and not (name.startswith(".") and name.endswith(".lock"))
            ]
        return sorted(found)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def holds_conditions(self) -> bool:
        return True


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
