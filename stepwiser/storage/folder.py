"""Files in a folder of this machine, or of a file system that it shares with others."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
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
            if error.errno not in NO_LINKS:
                raise
            with self.locked(str(Path(name).parent / "swaps")):
                if path.is_file():
                    return path.read_bytes() == data
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def swap(self, name: str, data: bytes, version: str) -> str | None:
        path = self.root / name
        if not path.is_file():
            return None
        # One lock for the files of a folder: swaps are rare, and take no time.
        with self.locked(str(Path(name).parent / "swaps")):
            if not path.is_file() or _version(path.read_bytes()) != version:
                return None
            self.put(name, data)
        return _version(data)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Have no other process in a block of this name, on this machine or on another that shares
        the folder; where its file system has no locks, nobody is kept out."""
        path = self.root / name
        path = path.with_name(f".{path.name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as lock:
            _lock(lock.fileno())
            yield

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
        if not self.root.is_dir():
            return True  # nobody has begun; who comes next asks again
        with tempfile.TemporaryFile(dir=self.root) as probe:
            return _lock(probe.fileno())


NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without hard links answers, as some that show a bucket as a folder."""
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system without locks answers, as Lustre mounted without `flock`."""


def _lock(file: int) -> bool:
    """Wait for a file's lock; False where its file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
