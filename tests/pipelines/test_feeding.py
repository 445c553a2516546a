"""Units reach the labelers as the engines have room; no Ray, the labelers are plain objects."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from pipelines import feeding
from stepwiser.admission import COLD_START, Reading


class _Method:
    def __init__(self, function: Any) -> None:
        self.remote = function


class _Labeler:
    """Works on as many problems as it may, each for some milliseconds."""

    def __init__(self, seconds: float, done: Counter[str]) -> None:
        self.limit, self.inside, self.waiting, self.peak = COLD_START, 0, 0, 0
        self._seconds, self._done = seconds, done
        self.allow, self.annotate = _Method(self._allow), _Method(self._annotate)

    async def _allow(self, problems: int) -> tuple[int, int]:
        self.limit = problems
        return self.inside, self.inside + self.waiting

    async def _annotate(self, unit: str, problems: list[int], client: object) -> dict[str, int]:
        self.waiting += len(problems)
        await asyncio.gather(*(self._one(p) for p in problems))
        self._done[unit] += 1
        return {"problems": len(problems)}

    async def _one(self, problem: int) -> None:
        while self.inside >= self.limit:
            await asyncio.sleep(0.001)
        self.waiting -= 1
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        if problem < 0:
            raise ValueError("a unit that cannot be written")
        await asyncio.sleep(self._seconds)
        self.inside -= 1


class _Pool:
    """As many engines as `engines` says at each look; all have room, or all are full."""

    def __init__(self, engines: list[int], reading: Reading) -> None:
        self._engines, self._reading = engines, reading

    async def readings(self) -> dict[int, Reading]:
        count = self._engines.pop(0) if len(self._engines) > 1 else self._engines[0]
        return dict.fromkeys(range(count), self._reading)


def _feed(pool: _Pool, units: dict[str, list[int]], seconds: float = 0.02):
    done: Counter[str] = Counter()
    reported: Counter[str] = Counter()
    labelers: list[_Labeler] = []

    def hire() -> _Labeler:
        labelers.append(_Labeler(seconds, done))
        return labelers[-1]

    def finished(unit: str, counts: dict[str, int]) -> None:
        reported[unit] += counts["problems"]

    asyncio.run(asyncio.wait_for(feeding.feed(pool, None, hire, units, finished), 30.0))
    return labelers, done, reported


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch) -> None:
    monkeypatch.setattr(feeding, "LOOK_S", 0.02)


def test_every_unit_is_done_once_while_engines_come_and_go():
    units = {f"unit {i}": [0] * 8 for i in range(40)}
    pool = _Pool([1, 1, 3, 3, 0, 0, 2], Reading(0, 0, 64))
    labelers, done, reported = _feed(pool, units)
    assert done == Counter(list(units)) and set(reported.values()) == {8}
    assert len(labelers) == 3
    assert min(labeler.peak for labeler in labelers) > COLD_START


def test_full_engines_hold_the_work_back():
    units = {f"unit {i}": [0] * 8 for i in range(12)}
    labelers, done, _ = _feed(_Pool([1], Reading(64, 1000, 64)), units)
    assert len(done) == 12
    assert labelers[0].peak <= COLD_START


def test_a_unit_that_fails_ends_the_feeding():
    units = {"good": [0] * 8, "bad": [-1] * 8, "late": [0] * 8}
    with pytest.raises(ValueError, match="cannot be written"):
        _feed(_Pool([1], Reading(0, 0, 64)), units)
