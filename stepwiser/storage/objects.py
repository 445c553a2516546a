"""Files in a bucket: S3 and its likenesses, Google Cloud Storage, Azure Blob Storage.

Credentials, endpoint and region come from the environment, as the store's own tools read it.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stepwiser.storage.failures import is_lasting, named
from stepwiser.storage.folder import writing

if TYPE_CHECKING:
    from obstore import PutMode

T = TypeVar("T")

PATIENCE_S = 60.0
"""As long a request that may yet succeed is tried again, waits between tries included."""
SILENCE_S = 30.0
"""A connection that says nothing for so long is given up, and the request tried again."""
PIECE = 16 * 2**20
"""Bytes of one request for a part of a large file, up or down."""
AT_ONCE = 8
"""Parts of one large file under way."""
PAGE = 1000
"""Names that a store lists in one answer."""
SHARDS = tuple("123456789abcdef")
"""Where long lists are cut, so that the parts are asked for at the same time: names of units are
hexadecimal digits of hashes, and fall into the parts evenly."""


class _Replaced(Exception):
    """A file is another one in the middle of its reading."""


class _Undivided(Exception):
    """The store gives no parts of files that a client would believe to be such: rclone's server
    answers 200 where HTTP has 206."""


class Objects:
    """`Storage` in a bucket."""

    def __init__(self, address: str, patience_s: float = PATIENCE_S) -> None:
        """``address``: `s3://bucket/folder`, `gs://`, `az://`, `abfs://`; nothing is asked of the
        store yet."""
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        self.place = address.rstrip("/")
        self._patience_s = patience_s
        try:
            self._store: Any = from_url(
                self.place,
                client_options={
                    "allow_http": _endpoint().startswith("http://"),
                    "connect_timeout": timedelta(seconds=10),
                    "read_timeout": timedelta(seconds=SILENCE_S),
                    "timeout": timedelta(seconds=2 * SILENCE_S),
                },
                retry_config={
                    "max_retries": 10,
                    "backoff": {
                        "init_backoff": timedelta(seconds=0.1),
                        "max_backoff": timedelta(seconds=5),
                    },
                    "retry_timeout": timedelta(seconds=patience_s),
                },
            )
        except (BaseError, ValueError) as error:
            raise named(error, "used", self.place) from error

    def read(self, name: str) -> bytes:
        return self.read_version(name)[0]

    def read_version(self, name: str) -> tuple[bytes, str]:
        def get() -> tuple[bytes, str]:
            answer = self._store.get(name)
            return bytes(answer.bytes()), str(answer.meta["e_tag"])

        return self._patiently("read", name, get)

    def fetch(self, name: str, target: Path) -> None:
        def begin() -> tuple[int, str, bytes | None]:
            answer = self._store.get(name)
            size, version = answer.meta["size"], answer.meta["e_tag"]
            return size, version, bytes(answer.bytes()) if size <= PIECE else None

        for _ in range(3):
            size, version, data = self._patiently("read", name, begin)
            if data is not None:
                with writing(target) as temporary:
                    temporary.write_bytes(data)
                return
            with contextlib.suppress(_Replaced):
                try:
                    self._fetch(name, size, version, target)
                except _Undivided:
                    self._patiently("read", name, lambda: self._fetch_whole(name, target))
                return
        raise named(RuntimeError("it is replaced all the time"), "read", self._called(name))

    def _fetch(self, name: str, size: int, version: str, target: Path) -> None:
        def piece(begin: int) -> bytes:
            end = min(begin + PIECE, size)
            options = {"range": (begin, end), "if_match": version}
            try:
                data = bytes(self._store.get(name, options=options).bytes())
            except GenericError as error:
                if "non-partial response" in str(error):
                    raise _Undivided from error
                raise
            if len(data) != end - begin:
                raise ValueError(f"{len(data)} bytes came of {end - begin}")
            return data

        def patiently(begin: int) -> bytes:
            try:
                return self._patiently("read", name, lambda: piece(begin))
            except (FileNotFoundError, PreconditionError) as error:
                raise _Replaced from error

        from obstore.exceptions import GenericError, PreconditionError

        with (
            writing(target) as temporary,
            temporary.open("wb") as file,
            ThreadPoolExecutor(AT_ONCE) as threads,
        ):
            for part in threads.map(patiently, range(0, size, PIECE)):
                file.write(part)

    def _fetch_whole(self, name: str, target: Path) -> None:
        """A large file in one request, part after part of its answer."""
        answer = self._store.get(name)
        with writing(target) as temporary, temporary.open("wb") as file:
            for part in answer.stream(min_chunk_size=PIECE):
                file.write(part)
            if file.tell() != answer.meta["size"]:
                raise ValueError(f"{file.tell()} bytes came of {answer.meta['size']}")

    def put(self, name: str, data: bytes | Path) -> None:
        # From a path the parts are read as they are sent, and sent again where one is lost.
        self._patiently(
            "written",
            name,
            lambda: self._store.put(name, data, chunk_size=PIECE, max_concurrency=AT_ONCE),
        )

    def create(self, name: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError

        for pause in self._pauses():
            try:
                self._put_if(name, data, "create")
                return True
            except AlreadyExistsError as error:
                # Perhaps by an earlier try of this one, whose answer was lost on its way. Where
                # nothing is there (409), another conditional put was under way and may have failed.
                with contextlib.suppress(FileNotFoundError):
                    return self.read(name) == data
                if pause is None:
                    raise named(error, "written", self._called(name)) from error
            except NotImplementedError:
                if self.exists(name):
                    return self.read(name) == data
                self.put(name, data)
                return True
            time.sleep(pause)
        raise AssertionError("a last pause ends it")

    def swap(self, name: str, data: bytes, version: str) -> str | None:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        for pause in self._pauses():
            try:
                return self._put_if(name, data, {"e_tag": version})
            except FileNotFoundError:
                return None
            except (AlreadyExistsError, PreconditionError) as error:
                try:
                    there, now = self.read_version(name)
                except FileNotFoundError:
                    return None
                if there == data:
                    return now
                if now != version:
                    return None
                if pause is None:
                    raise named(error, "written", self._called(name)) from error
            except NotImplementedError:
                if self.read_version(name)[1] != version:
                    return None
                self.put(name, data)
                return self.read_version(name)[1]
            time.sleep(pause)
        raise AssertionError("a last pause ends it")

    def _pauses(self) -> Iterator[float | None]:
        """Seconds to wait after each try, None after the last one: as many as patience allows."""
        deadline = time.monotonic() + self._patience_s
        pause = 0.1
        while time.monotonic() + pause < deadline:
            yield pause * random.uniform(0.5, 1.0)
            pause = min(2 * pause, 5.0)
        yield None

    def _put_if(self, name: str, data: bytes, mode: PutMode) -> str:
        """Put on a condition; its version. Raises NotImplementedError for a store without any."""
        from obstore.exceptions import NotSupportedError

        def put() -> str:
            try:
                made = self._store.put(name, data, mode=mode, use_multipart=False)
            except NotSupportedError as error:
                raise NotImplementedError from error
            except Exception as error:
                if "NotImplemented" in str(error) or " 501 " in str(error):
                    raise NotImplementedError from error
                raise
            return str(made["e_tag"])

        return self._patiently("written", name, put)

    def exists(self, name: str) -> bool:
        try:
            self._patiently("read", name, lambda: self._store.head(name))
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str = "") -> list[str]:
        """As `Storage.names`: one request for a thousand names; beyond those, in 16 parts that are
        asked for at the same time."""
        found, whole = self._names(folder, None, None, PAGE)
        if not whole:
            base = f"{folder}/" if folder else ""
            cuts = [found[-1], *(base + digit for digit in SHARDS if base + digit > found[-1])]
            with ThreadPoolExecutor(len(cuts)) as threads:
                parts = threads.map(
                    lambda after, upto: self._names(folder, after, upto, None)[0],
                    cuts,
                    [*cuts[1:], None],
                )
                found += [name for part in parts for name in part]
        return sorted(found)

    def _names(
        self, folder: str, after: str | None, upto: str | None, most: int | None
    ) -> tuple[list[str], bool]:
        """Names in (after, upto], and whether those are all; a page that is lost is asked again."""
        found: list[str] = []

        def look() -> bool:
            start = found[-1] if found else after
            stream = self._store.list(folder or None, offset=start, chunk_size=PAGE)
            for page in stream:
                for entry in page:
                    if upto is not None and entry["path"] > upto:
                        return True
                    found.append(entry["path"])
                if most is not None and len(found) >= most:
                    return False
            return True

        whole = self._patiently("listed", folder, look)
        return found, whole

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._patiently("removed", name, lambda: self._store.delete(name))

    def holds_conditions(self) -> bool:
        from obstore.exceptions import AlreadyExistsError

        name = f".conditions-{secrets.token_hex(8)}"
        try:
            self._put_if(name, b"first", "create")
            self._put_if(name, b"second", "create")
        except AlreadyExistsError:
            return True
        except NotImplementedError:
            return False
        finally:
            self.remove(name)
        return False

    def _patiently(self, action: str, name: str, request: Callable[[], T]) -> T:
        """Make a request again while it may yet succeed.

        The library tries again where the store answers with an error of its own, or where a read
        is not answered; here lie answers that break off, and puts whose answers are lost.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        for pause in self._pauses():
            try:
                return request()
            except (FileNotFoundError, AlreadyExistsError, PreconditionError) as error:
                if is_lasting(error):  # no such bucket
                    raise named(error, action, self._called(name)) from error
                raise
            except (BaseError, OSError, ValueError) as error:
                if is_lasting(error) or pause is None:
                    raise named(error, action, self._called(name)) from error
            time.sleep(pause)
        raise AssertionError("a last pause ends it")

    def _called(self, name: str) -> str:
        return f"{self.place}/{name}" if name else self.place


def _endpoint() -> str:
    """Where the environment says that the store is; empty for the cloud's own."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")
