"""What networks and stores do to requests: tried again within bounds, or named with the fix."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepwiser.errors import UserError
from stepwiser.storage import objects
from stepwiser.storage.failures import is_lasting
from stepwiser.storage.objects import PIECE, Objects
from tests.stepwiser.storage.servers import BUCKET, FaultyProxy
from tests.support.paths import ROOT


@pytest.fixture
def storage(proxy: FaultyProxy, tmp_path: Path) -> Objects:
    return Objects(f"s3://{BUCKET}/{tmp_path.name}")


def impatient(tmp_path: Path) -> Objects:
    return Objects(f"s3://{BUCKET}/{tmp_path.name}", patience_s=0.5)


def test_throttling_is_waited_out(storage: Objects, proxy: FaultyProxy) -> None:
    for method in ("PUT", "GET", "HEAD", "POST"):  # files are removed by a POST
        proxy.fault(method, times=2, status=503, code="SlowDown")
    storage.put("a", b"whole")
    assert storage.create("b", b"new")
    assert storage.read("a") == b"whole"
    assert storage.exists("a")
    assert storage.names() == ["a", "b"]
    storage.remove("a")
    assert storage.names() == ["b"]
    assert all(fault.seen == 2 for fault in proxy.faults)


def test_throttling_without_end_is_named(proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.fault("PUT", times=10**6, status=503, code="SlowDown")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"a cannot be written: the store is overloaded"):
        impatient(tmp_path).put("a", b"x")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "ExpiredToken", "credentials have expired"),
        (403, "RequestTimeTooSkewed", "clock is wrong"),
        (403, "QuotaExceeded", "bucket is full"),
        (507, "XMinioStorageFull", "bucket is full"),
        (403, "AccessDenied", "may not do that: allow reading"),
        (403, "InvalidAccessKeyId", "are not accepted: correct AWS_ACCESS_KEY_ID"),
        (404, "NoSuchBucket", "bucket does not exist: create it"),
        (301, "PermanentRedirect", "set AWS_REGION"),
    ],
)
def test_what_stays_is_named_with_its_fix(
    proxy: FaultyProxy, tmp_path: Path, status: int, code: str, words: str
) -> None:
    storage = impatient(tmp_path)
    requests = {
        "PUT": lambda: storage.put("units/403.json", b"x"),
        "GET": lambda: storage.read("units/403.json"),
    }
    for method, request in requests.items():
        proxy.fault(method, times=10**6, status=status, code=code)
        with pytest.raises(UserError, match=words) as caught:
            request()
        assert f"{storage.place}/units/403.json" in str(caught.value)
    with pytest.raises(UserError, match=words):
        storage.create("units/403.json", b"x")


@pytest.mark.parametrize("took", ["301.109631ms", "507.2ms", "401.5µs", "403s", "301ms"])
def test_how_long_an_answer_took_says_nothing(took: str) -> None:
    said = (
        "Object at location units/301.json not found: Error performing HEAD http://s:301/b"
        f" in {took}, after 2 retries, retry_timeout: 60s  - Server returned non-2xx status code: "
    )
    assert not is_lasting(FileNotFoundError(f"{said}404 Not Found: "))
    assert is_lasting(OSError(f"{said}403 Forbidden: "))


def test_a_conflict_is_tried_again(storage: Objects, proxy: FaultyProxy) -> None:
    """409 says that two conditional puts met, not that this one has lost."""
    proxy.fault("PUT", times=2, status=409, code="ConditionalRequestConflict")
    assert storage.create("units/a.json", b"mine")
    assert proxy.faults[0].seen == 2
    version = storage.read_version("units/a.json")[1]
    proxy.fault("PUT", times=2, status=409, code="ConditionalRequestConflict")
    assert storage.swap("units/a.json", b"mine again", version) is not None
    assert storage.read("units/a.json") == b"mine again"


@pytest.mark.parametrize("kind", ["create", "swap", "put"])
def test_an_answer_that_is_lost_is_no_loss(storage: Objects, proxy: FaultyProxy, kind: str) -> None:
    """The server has done it; asked again it says that somebody has, and that was we."""
    storage.put("old", b"old")
    version = storage.read_version("old")[1]
    proxy.fault("PUT", lose_answer=True)
    if kind == "create":
        assert storage.create("new", b"mine")
        assert not storage.create("new", b"another's")
        assert storage.read("new") == b"mine"
    elif kind == "swap":
        made = storage.swap("old", b"mine", version)
        assert made == storage.read_version("old")[1]
        assert storage.read("old") == b"mine"
        assert storage.swap("old", b"another's", version) is None
    else:
        storage.put("old", b"mine")
        assert storage.read("old") == b"mine"
    assert proxy.faults[0].seen == 1


def test_a_store_without_conditions_says_so(proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.fault("PUT", times=10**6, status=501, code="NotImplemented")
    storage = impatient(tmp_path)
    assert not storage.holds_conditions()
    proxy.faults.clear()
    # Where one writer works alone, looking first will do.
    for _ in range(2):
        proxy.fault("PUT", times=1, status=501, code="NotImplemented")
    assert storage.create("a", b"one")
    assert not storage.create("a", b"two")
    assert storage.read("a") == b"one"


def test_answers_that_break_off_or_stall_are_asked_for_again(
    storage: Objects, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(PIECE + 1000)
    (tmp_path / "model").write_bytes(data)
    storage.put("model", tmp_path / "model")
    proxy.fault("GET", "model", times=2, cut_at=1000)
    storage.fetch("model", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    monkeypatch.setattr(objects, "SILENCE_S", 0.3)
    hasty = Objects(storage.place)
    proxy.fault("GET", "model", stall_s=2.0)
    hasty.fetch("model", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == data
    assert [fault.seen for fault in proxy.faults] == [2, 1]


def test_a_file_that_is_replaced_meanwhile_is_read_whole(
    storage: Objects, proxy: FaultyProxy, tmp_path: Path
) -> None:
    old, new = (bytes([i]) * (PIECE + 1) for i in (1, 2))
    storage.put("model", old)
    proxy.fault("GET", "model", before=lambda: storage.put("model", new))
    storage.fetch("model", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == new


def test_a_torn_upload_leaves_nothing(storage: Objects, proxy: FaultyProxy, tmp_path: Path) -> None:
    """A part is lost on its way: sent again. The process is killed between parts: no file."""
    data = os.urandom(2 * PIECE + 5)
    (tmp_path / "model").write_bytes(data)
    proxy.fault("PUT", "partNumber=2", lose_answer=True)
    proxy.fault("PUT", "partNumber=3", status=503, code="SlowDown")
    storage.put("model", tmp_path / "model")
    assert storage.read("model") == data
    assert [fault.seen for fault in proxy.faults] == [1, 1]

    script = (
        "from pathlib import Path; from stepwiser.storage.objects import Objects\n"
        f"Objects({storage.place!r}).put('torn', Path({str(tmp_path / 'model')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    proxy.fault(
        "POST", "torn?uploadId", before=lambda: os.kill(process.pid, signal.SIGKILL), status=500
    )
    assert process.wait(60) == -signal.SIGKILL
    assert not storage.exists("torn")
    assert storage.names() == ["model"]
