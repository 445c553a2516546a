"""What both kinds of place promise, a real S3 server among them, and what it costs there."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stepwiser.errors import UserError
from stepwiser.storage.interface import Storage
from stepwiser.storage.objects import PIECE, SHARDS, Objects
from stepwiser.storage.places import open_storage
from tests.stepwiser.storage.servers import BUCKET, FaultyProxy, use_endpoint


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "folder":
        yield open_storage("run_dir", tmp_path / "a run")
    else:
        request.getfixturevalue("proxy")
        # Spaces and percent signs are characters of a name like others.
        yield open_storage("run_dir", f"s3://{BUCKET}/{tmp_path.name}/a run")


@pytest.fixture
def without_conditions(rclone_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """In a store of another make, which writes whatever the condition."""
    use_endpoint(monkeypatch, rclone_url)
    return open_storage("run_dir", f"s3://{BUCKET}/{tmp_path.name}/a run")


def test_a_file_is_what_was_put_last(storage: Storage, tmp_path: Path) -> None:
    _put_and_look(storage, tmp_path)


def test_a_store_of_another_make_keeps_files_and_is_known_to_hold_no_conditions(
    without_conditions: Storage, tmp_path: Path
) -> None:
    _put_and_look(without_conditions, tmp_path)
    assert not without_conditions.holds_conditions()
    data = bytes(range(256)) * (2 * PIECE // 256) + b"the end"
    (tmp_path / "model").write_bytes(data)
    without_conditions.put("model", tmp_path / "model")
    without_conditions.fetch("model", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    names = sorted(f"many/{(i * 2654435761) % 2**32:08x}.json" for i in range(1050))
    for name in names:
        without_conditions.put(name, b"")
    assert without_conditions.names("many") == names


def _put_and_look(storage: Storage, tmp_path: Path) -> None:
    assert not storage.exists("units/a 50%.json")
    with pytest.raises(FileNotFoundError):
        storage.read("units/a 50%.json")
    with pytest.raises(FileNotFoundError):
        storage.fetch("units/a 50%.json", tmp_path / "copy")
    storage.put("units/a 50%.json", b"one")
    storage.put("units/a 50%.json", b"two")
    (tmp_path / "source").write_bytes(b"three")
    storage.put("values/b.parquet", tmp_path / "source")
    storage.put("unit", b"no folder's")
    assert storage.read("units/a 50%.json") == b"two"
    assert storage.exists("units/a 50%.json") and not storage.exists("units")
    storage.fetch("values/b.parquet", tmp_path / "below" / "copy")
    assert (tmp_path / "below" / "copy").read_bytes() == b"three"
    assert storage.names("units") == ["units/a 50%.json"]
    assert storage.names() == ["unit", "units/a 50%.json", "values/b.parquet"]
    assert storage.names("nothing") == []
    storage.remove("unit")
    storage.remove("unit")
    assert storage.names() == ["units/a 50%.json", "values/b.parquet"]


def test_exactly_one_of_many_creates_a_file(storage: Storage) -> None:
    start = threading.Barrier(6)

    def create(number: int) -> bool:
        start.wait()
        return storage.create("units/a.json", f"of {number}".encode())

    for _ in range(3):
        with ThreadPoolExecutor(6) as threads:
            told = list(threads.map(create, range(6)))
        assert told.count(True) == 1
        assert storage.read("units/a.json") == f"of {told.index(True)}".encode()
        storage.remove("units/a.json")


def test_a_file_system_without_hard_links_has_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: object, target: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    folder = open_storage("run_dir", tmp_path)
    with ThreadPoolExecutor(6) as threads:
        told = list(threads.map(lambda i: folder.create("units/a", f"{i}".encode()), range(6)))
    assert told.count(True) == 1 and folder.read("units/a") == f"{told.index(True)}".encode()
    assert folder.names() == ["units/a"]


def test_swaps_count_every_one_once(storage: Storage) -> None:
    """Six writers add to one number; a swap that lost looks again."""
    storage.put("number", b"0 nobody 0")
    assert storage.swap("number", b"x", "another version") is None
    assert storage.swap("missing", b"x", "any") is None

    def add(writer: int) -> None:
        for turn in range(5):
            while True:
                data, version = storage.read_version("number")
                new = f"{int(data.split()[0]) + 1} {writer} {turn}".encode()
                if storage.swap("number", new, version) is not None:
                    break

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(add, range(6)))
    assert storage.read("number").split()[0] == b"30"
    version = storage.read_version("number")[1]
    assert storage.swap("number", b"last", version) == storage.read_version("number")[1]


def test_a_place_is_asked_whether_it_holds_conditions(storage: Storage) -> None:
    assert storage.holds_conditions()
    assert storage.names() == []


def test_a_large_file_goes_up_and_down_in_parts(proxy: FaultyProxy, tmp_path: Path) -> None:
    storage = Objects(f"s3://{BUCKET}/{tmp_path.name}")
    data = bytes(range(256)) * (2 * PIECE // 256) + b"the end"
    (tmp_path / "model").write_bytes(data)
    storage.put("model", tmp_path / "model")
    storage.fetch("model", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert sum("partNumber=" in path for _, path in proxy.requests) == 3
    # The first says how large it is.
    assert [method for method, _ in proxy.requests].count("GET") == 1 + 3


def test_long_lists_come_in_parts_and_whole(proxy: FaultyProxy, tmp_path: Path) -> None:
    """The first thousand names, then 16 parts at once; pages that are lost are asked for again."""
    storage = Objects(f"s3://{BUCKET}/{tmp_path.name}")
    expected = sorted(f"units/{(i * 2654435761) % 2**32:08x}.json" for i in range(1050))
    for name in [*expected, "unitsx/0.json", "aaa"]:
        storage._store.put(name, b"")
    proxy.requests.clear()
    proxy.fault("GET", "start-after", lose_answer=True)
    proxy.fault("GET", "list-type", cut_at=50)
    assert storage.names("units") == expected
    assert [fault.seen for fault in proxy.faults] == [1, 1]
    assert len(proxy.requests) <= 1 + len(SHARDS) + 1 + 3


def test_addresses_and_paths(tmp_path: Path) -> None:
    assert open_storage("run_dir", f"file://{tmp_path}").place == str(tmp_path)
    # What was a Path has lost a slash.
    assert open_storage("run_dir", Path("s3://bucket/run/")).place == "s3://bucket/run"
    with pytest.raises(UserError, match="names no bucket: write s3://bucket/folder"):
        open_storage("run_dir", "s3://")
    with pytest.raises(UserError, match="scheme hdfs"):
        open_storage("run_dir", "hdfs://host/run")
