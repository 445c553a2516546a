"""Units shared by starts that know nothing of each other: all done, each counted once.

Files and leases are real, in a folder; the clock is the test's, and work is a number of seconds.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.annotation.unit_leases import TAIL_S, UnitLeases
from stepwiser.annotation.joining import UNIT_LEASES
from stepwiser.storage.folder import Folder
from stepwiser.storage.lease import SILENT_S, Leases

BEAT_S = SILENT_S / 3


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Cluster:
    """A start as the stage drives it: so many units at a time, each for so many seconds."""

    def __init__(
        self, folder: Folder, name: str, clock: Clock, units: list[str], slots: int, unit_s: float
    ) -> None:
        self.folder, self.name, self.clock = folder, name, clock
        self.slots, self.unit_s = slots, unit_s
        # Of no machine: only its silence says that it is dead.
        self.leases = Leases(folder, UNIT_LEASES, name, clock=clock, process={})
        self.held = UnitLeases(self.leases, units, self._finished, self._writer, clock)
        self.todo: list[str] = []
        self.ends: dict[str, float] = {}
        self.counted: list[str] = []
        self.computed = 0
        self.others = 0
        self.beat_at = self.take_at = clock.now
        self.alive = True
        self.held.renew()

    def _finished(self, left: set[str]) -> set[str]:
        return {u for u in left if self.folder.exists(f"units/{u}.json")}

    def _writer(self, unit: str) -> str:
        return str(json.loads(self.folder.read(f"units/{unit}.json"))["by"])

    def step(self, ends: bool = True) -> None:
        """What happens by now; a cluster whose units do not end is stuck, and lives."""
        now = self.clock.now
        if now >= self.beat_at + BEAT_S:
            self.beat_at = now
            self.held.renew()
        for unit in [unit for unit, end in self.ends.items() if end <= now and ends]:
            del self.ends[unit]
            self.computed += 1
            summary = json.dumps({"by": self.name}).encode()
            first = self.folder.create(f"units/{unit}.json", summary)
            if first:
                self.counted.append(unit)
            self.held.finished(unit, elsewhere=not first)
        while len(self.ends) < self.slots and not self.held.over:
            if not self.todo:
                if now < self.take_at:
                    break
                self.todo = self.held.take(hungry=True)
                if not self.todo:
                    self.take_at = now + TAIL_S / 3
                    break
            unit = self.todo.pop(0)
            if not self.held.begin(unit):
                continue
            if self.folder.exists(f"units/{unit}.json"):  # as a labeler looks first
                self.held.finished(unit, elsewhere=True)
            else:
                self.ends[unit] = now + self.unit_s
        if self.held.wanted and now >= self.take_at:
            found = self.held.take(hungry=False)
            self.todo += found
            self.take_at = now if found else now + TAIL_S / 3
        self.others += len(self.held.news())

    def leave(self) -> None:
        self.alive = False
        self.held.leave()

    def die(self) -> None:
        self.alive = False


def names(count: int) -> list[str]:
    return [f"{number:04x}" for number in range(count)]


def run(clock: Clock, clusters: list[Cluster], limit_s: float, step_s: float = 1.0) -> float:
    """Until those that live see that all is done; returns the seconds it took."""
    began = clock.now
    while not all(one.held.over for one in clusters if one.alive):
        assert clock.now < began + limit_s, [len(one.held._left) for one in clusters]
        clock.now += step_s
        for one in clusters:
            if one.alive:
                one.step()
    return clock.now - began


def test_one_alone_takes_all_in_order_and_leaves_nothing(tmp_path: Path) -> None:
    clock, folder, units = Clock(), Folder(tmp_path), names(40)
    one = Cluster(folder, "one", clock, units, 4, 5.0)
    assert run(clock, [one], 200.0) <= 40 / 4 * 5 + 2
    assert one.counted == units and one.computed == 40 and one.others == 0
    one.leave()
    assert folder.names(UNIT_LEASES) == []


def test_each_does_as_much_as_it_is_fast(tmp_path: Path) -> None:
    clock, folder, units = Clock(), Folder(tmp_path), names(280)
    speeds = {"slow": (2, 20.0), "middle": (2, 10.0), "fast": (4, 10.0)}
    clusters = [Cluster(folder, name, clock, units, *how) for name, how in speeds.items()]
    seconds = run(clock, clusters, 3000.0)
    # Together 0.1 + 0.2 + 0.4 units a second.
    assert seconds <= 1.05 * 280 / 0.7
    done = {one.name: len(one.counted) for one in clusters}
    assert abs(done["slow"] - 40) <= 4
    assert abs(done["middle"] - 80) <= 6 and abs(done["fast"] - 160) <= 8
    assert sum(done.values()) == 280 == sum(one.others for one in clusters) / 2
    assert sum(one.computed for one in clusters) <= 280 + 8, "next to nothing was done twice"


def test_a_cluster_that_joins_late_shares_what_is_left(tmp_path: Path) -> None:
    clock, folder, units = Clock(), Folder(tmp_path), names(100)
    first = Cluster(folder, "first", clock, units, 2, 4.0)
    while len(first.counted) < 50:
        clock.now += 1.0
        first.step()
    late = Cluster(folder, "late", clock, units, 2, 4.0)
    assert run(clock, [first, late], 100.0) <= 50 / 1.0 + 8.0
    assert len(late.counted) >= 22
    assert late.computed + first.computed <= 103


def test_what_those_held_who_leave_or_die_is_done_by_others(tmp_path: Path) -> None:
    clock, folder, units = Clock(), Folder(tmp_path), names(40)
    stays, leaves, dies = (Cluster(folder, n, clock, units, 4, 2.0) for n in ("s", "l", "d"))
    for one in (dies, leaves, stays):
        one.step()
    begun = {one.name: set(one.ends) for one in (stays, leaves, dies)}
    assert sum(map(len, begun.values())) == 12 == len(set().union(*begun.values()))
    leaves.leave()
    dies.die()
    assert leaves.leases.owners().keys() == {"s", "d"}
    took = run(clock, [stays, leaves, dies], 300.0)
    assert Counter(stays.counted) == Counter(units)
    # Nothing else is left to do long before it is known to be dead.
    assert took <= 40 / 4 * 2 + 24 < SILENT_S
    stays.leave()
    assert [name for name in folder.names(UNIT_LEASES) if "taken" in name] == []


def test_nothing_is_taken_twice_where_taking_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Clock):
        def __call__(self) -> float:
            self.now += 2.0  # a bucket that is throttled: others are looked for between two claims
            return self.now

    folder, clock, units = Folder(tmp_path), Slow(), names(400)
    clusters = [Cluster(folder, name, clock, units, 1, 1.0) for name in ("one", "other")]
    taken: dict[str, list[str]] = {"one": [], "other": []}
    monkeypatch.setattr(UnitLeases, "_ahead", lambda *_: 40)
    for _ in range(4):
        for cluster in clusters:
            cluster.held.renew()
            for unit in cluster.held.take(hungry=True):
                taken[cluster.name].append(unit)
                cluster.held.begin(unit)
    for found in taken.values():
        assert len(found) == len(set(found)) > 100


def test_a_dead_owners_units_are_free_after_its_silence(tmp_path: Path) -> None:
    clock, folder, units = Clock(), Folder(tmp_path), names(60)
    dies = Cluster(folder, "dies", clock, units, 4, 50.0)
    dies.step()
    dies.die()
    busy = Cluster(folder, "busy", clock, units, 1, 4.0)
    was = set(dies.ends)
    while not was & set(busy.counted):
        clock.now += 1.0
        busy.step()
    took = clock.now - 1000.0
    assert SILENT_S <= took <= 60 * 4.0 + 8.0 and not busy.held.over
    run(clock, [busy], 300.0)
    busy.leave()
    assert folder.names(UNIT_LEASES) == [], "what it left is swept at the end"


def test_a_straggler_is_repeated_and_counts_once(tmp_path: Path) -> None:
    clock, folder, units = Clock(), Folder(tmp_path), names(30)
    slow = Cluster(folder, "slow", clock, units, 1, 400.0)
    slow.step()
    fast = Cluster(folder, "fast", clock, units, 3, 4.0)
    another = Cluster(folder, "another", clock, units, 3, 4.0)
    took = run(clock, [slow, fast, another], 200.0)
    assert took <= 60.0, "nobody waited for it"
    assert slow.counted == [] and len(fast.counted) + len(another.counted) == 30
    # One of them repeats it, not both; and a few of each other's last ones are begun twice.
    assert fast.computed + another.computed <= 33


def test_one_that_is_stuck_holds_nobody_up(tmp_path: Path) -> None:
    clock, folder, units = Clock(), Folder(tmp_path), names(20)
    stuck = Cluster(folder, "stuck", clock, units, 2, 5.0)
    sound = Cluster(folder, "sound", clock, units, 2, 5.0)
    while not sound.held.over:
        clock.now += 1.0
        stuck.step(ends=False)
        sound.step()
        assert clock.now < 1400.0
    assert len(sound.counted) == 20


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_whatever_dies_and_comes_every_unit_is_counted_once(
    tmp_path_factory: object, seed: int
) -> None:
    rng = random.Random(seed)
    folder = Folder(tmp_path_factory.mktemp("run"))  # type: ignore[attr-defined]
    clock, units = Clock(), names(rng.randint(1, 60))
    clusters: list[Cluster] = []

    def join() -> None:
        name = f"c{len(clusters)}"
        how = rng.randint(1, 6), rng.choice([0.5, 3.0, 10.0, 45.0])
        clusters.append(Cluster(folder, name, clock, units, *how))

    join()
    for _ in range(rng.randint(0, 60)):
        clock.now += rng.choice([0.0, 1.0, 5.0, 30.0])
        living = [one for one in clusters if one.alive]
        what = rng.random()
        if what < 0.15 or not living:
            join()
        elif what < 0.25:
            rng.choice(living).die()
        elif what < 0.35:
            rng.choice(living).leave()
        else:
            # Some are not heard of for a while, and go on as if nothing had been.
            for one in rng.sample(living, rng.randint(1, len(living))):
                one.step(ends=rng.random() < 0.8)
    join()
    run(clock, clusters, 2000.0)
    assert Counter(unit for one in clusters for unit in one.counted) == Counter(units)
    for one in clusters:
        if one.alive:
            assert one.others + len(one.counted) == len(units)
            one.leave()
    assert not [name for name in folder.names(UNIT_LEASES) if "taken" in name]
