"""Processes that share a run in a bucket that throttles: killed, told to leave, each row once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwiser.annotation.joining import UNIT_LEASES
from stepwiser.run.store import RunStore
from stepwiser.run.units import BY, finished_units, read_summary, read_unit
from tests.pipelines.annotation.joined_start import unit_names
from tests.stepwiser.storage.servers import BUCKET, faulty_proxy, s3_server, use_endpoint
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

COUNT = 90


@pytest.fixture(params=["folder", "s3"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunStore]:
    if request.param == "folder":
        yield RunStore(tmp_path / "run")
        return
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    over = threading.Event()
    with s3_server(tmp_path / "server.log") as url, faulty_proxy(url) as proxy:

        def throttle() -> None:
            while not over.wait(1.0):
                # On a slow machine requests are few: not all of them are to be refused.
                if all(fault.seen for fault in proxy.faults):
                    for method in ("PUT", "GET", "HEAD"):
                        proxy.fault(method, status=503, code="SlowDown")

        thread = threading.Thread(target=throttle)
        thread.start()
        use_endpoint(monkeypatch, proxy.url)
        try:
            yield RunStore(f"s3://{BUCKET}/run")
        finally:
            over.set()
            thread.join()
        assert sum(fault.seen for fault in proxy.faults) > 10, "the store did throttle"


def start(store: RunStore, seconds: float, slots: int) -> subprocess.Popen[str]:
    module = "tests.pipelines.annotation.joined_start"
    words = [sys.executable, "-m", module, store.place, str(COUNT), str(seconds), str(slots)]
    return subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE)


def owner(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().split()[1]


def did(store: RunStore) -> Counter[str]:
    return Counter(read_summary(store, unit)[BY] for unit in finished_units(store))


def test_killed_left_and_joined_each_unit_counts_once(store: RunStore) -> None:
    killed, leaves = start(store, 0.3, 2), start(store, 0.6, 2)
    names = {name: owner(process) for name, process in (("killed", killed), ("leaves", leaves))}
    joins = start(store, 0.2, 3)
    deadline = time.monotonic() + 600
    try:
        for name, process, end in (
            ("killed", killed, signal.SIGKILL),
            ("leaves", leaves, signal.SIGTERM),
        ):
            while did(store)[names[name]] < 3:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.2)
            process.send_signal(end)
        assert (killed.wait(60), leaves.wait(60)) == (-signal.SIGKILL, 130)
        assert names["leaves"] not in store.storage.names(f"{UNIT_LEASES}/owners")
        output = joins.communicate(timeout=600)[0]
    finally:
        for process in (killed, leaves, joins):
            process.kill()
            process.communicate()
    assert joins.returncode == 0, output
    # What is there is whole, and each of it once.
    units = finished_units(store)
    assert units == set(unit_names(COUNT))
    rows = [read_unit(store, unit) for unit in units]
    trajectories = Counter(row.trajectory_id for part, _ in rows for row in part)
    chunks = Counter(
        (v.trajectory_id, v.chunk_index) for _, part in rows for own in part.values() for v in own
    )
    assert len(trajectories) == trajectories.total() == COUNT
    assert len(chunks) == chunks.total() == 3 * COUNT
    by = did(store)
    assert len(by) == 3 and by.total() == COUNT
    mine = by[output.split()[1]]
    assert f"did {mine} others {COUNT - mine}" in output
    assert not store.storage.names(UNIT_LEASES), "nothing is left of the killed one"
