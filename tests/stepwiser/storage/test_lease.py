"""Owners that take work from each other: one at a time, and none for ever."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stepwiser.storage.interface import Storage
from stepwiser.storage.lease import Leases, new_owner
from stepwiser.storage.places import open_storage
from tests.stepwiser.storage.servers import BUCKET
from tests.support.paths import ROOT


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "s3":
        request.getfixturevalue("proxy")
    place = tmp_path if request.param == "folder" else f"s3://{BUCKET}/{tmp_path.name}"
    yield open_storage("run_dir", place)


class Clock:
    """Seconds, as a test says."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def owner(storage: Storage, name: str, clock: Clock) -> Leases:
    """Of no machine that is known: only its silence says that it is dead."""
    leases = Leases(storage, "leases", name, 60.0, clock, process={})
    leases.renew()
    return leases


def test_work_has_one_owner(storage: Storage) -> None:
    owners = [owner(storage, f"o{i}", Clock()) for i in range(5)]
    work = [f"u{i}" for i in range(6)]
    with ThreadPoolExecutor(5) as threads:
        took = list(threads.map(lambda one: {w for w in work if one.take(w)}, owners))
    assert sorted(w for taken in took for w in taken) == work
    assert owners[0].owners() == {f"o{i}": sorted(taken) for i, taken in enumerate(took) if taken}


def test_what_is_given_back_is_taken_at_once(storage: Storage) -> None:
    first, second = owner(storage, "first", Clock()), owner(storage, "second", Clock())
    assert first.take("a") and not second.take("a")
    first.give_back("a")
    assert second.take("a") and not first.take("a")
    first.give_back("a")
    assert second.owners() == {"second": ["a"]}, "what another has taken is not given back"
    second.end("a")
    assert second.owners() == {}


def test_a_dead_owner_loses_its_work_and_a_living_one_keeps_it(storage: Storage) -> None:
    clock = Clock()
    dead, alive, taker = (owner(storage, name, clock) for name in ("dead", "alive", "taker"))
    assert dead.take("a") and alive.take("b")
    assert not taker.take("a") and not taker.take("b")
    for _ in range(3):
        clock.now += 19.0
        alive.renew()
        assert not taker.take("a") and not taker.take("b")
    clock.now += 4.0
    assert taker.take("a") and not taker.take("b")
    # It was only slow: it learns that the work is another's, and takes nothing from it.
    dead.renew()
    assert not dead.take("a")
    dead.give_back("a")
    assert taker.owners() == {"taker": ["a"], "alive": ["b"]}


def test_of_several_takers_of_a_dead_owners_work_one_has_it(storage: Storage) -> None:
    clock = Clock()
    assert owner(storage, "dead", clock).take("a")
    takers = [owner(storage, f"t{i}", clock) for i in range(4)]
    assert not any(taker.take("a") for taker in takers)
    clock.now += 61.0
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda taker: taker.take("a"), takers)).count(True) == 1


def test_who_leaves_gives_all_back_and_is_none_any_more(storage: Storage) -> None:
    first, second = owner(storage, "first", Clock()), owner(storage, "second", Clock())
    assert first.take("a") and first.take("deep/b") and second.take("c")
    assert first.claim("c") == "second"
    assert first.others().keys() == {"second"}
    first.leave()
    assert second.others() == {} and second.owners() == {"second": ["c"]}
    assert second.take("a") and second.take("deep/b")
    second.renew({"done": 3})
    assert first.others()["second"]["done"] == 3


def test_a_process_of_this_machine_that_is_no_more_loses_its_work_at_once(tmp_path: Path) -> None:
    storage = open_storage("run_dir", tmp_path)
    code = (
        "from pathlib import Path\n"
        "from stepwiser.storage.folder import Folder\n"
        "from stepwiser.storage.lease import Leases, new_owner\n"
        f"leases = Leases(Folder(Path({str(tmp_path)!r})), 'leases', 'dead')\n"
        "leases.renew()\n"
        "assert leases.take('a')\n"
        "input()"
    )
    taker = Leases(storage, "leases", "taker")
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not storage.exists("leases/taken/a.json"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not taker.take("a")
        process.kill()
        # Nobody has waited for it yet.
        while not taker.take("a"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert taker.others().keys() == {"dead"} and not taker.lives("dead")
    taker.clear()
    taker.leave()
    assert storage.names() == []


def test_names_of_owners_are_those_of_their_machines() -> None:
    assert new_owner() != new_owner()
    assert re.fullmatch(r"[A-Za-z0-9-]+-[0-9a-f]{6}", new_owner())
