"""Units reach the labelers as the engines have room; no Ray, the labelers are plain objects."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from pipelines.annotation import dispatch
from stepwiser.annotation.admission import COLD_START, Reading
from stepwiser.annotation.outlook import WorkSeen
from stepwiser.data.records import Problem


class _Method:
    def __init__(self, function: Any) -> None:
        self.remote = function


class _Labeler:
    """Works on as many problems as it may, each for some milliseconds."""

    def __init__(self, seconds: float, done: Counter[str]) -> None:
        self.limit, self.inside, self.waiting, self.peak = COLD_START, 0, 0, 0
        self._seconds, self._done = seconds, done
        self.allow, self.annotate = _Method(self._allow), _Method(self._annotate)

    async def _allow(self, problems: int) -> tuple[int, int, WorkSeen]:
        self.limit = problems
        done = sum(self._done.values())
        return self.inside, self.inside + self.waiting, WorkSeen(problems=done, responses=done)

    async def _annotate(self, unit: str, problems: list[Problem], client: object) -> dict[str, int]:
        self.waiting += len(problems)
        await asyncio.gather(*(self._one(p) for p in problems))
        self._done[unit] += 1
        return {"problems": len(problems)}

    async def _one(self, problem: Problem) -> None:
        while self.inside >= self.limit:
            await asyncio.sleep(0.001)
        self.waiting -= 1
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        if problem.answer == "unwritable":
            raise ValueError("a unit that cannot be written")
        await asyncio.sleep(self._seconds)
        self.inside -= 1


class _Mortal(_Labeler):
    """Dies with all it has when it is given a fatal problem; made again, it is asked once more."""

    def __init__(self, seconds: float, done: Counter[str]) -> None:
        super().__init__(seconds, done)
        self.annotate = _Method(self._annotate_or_die)
        self.try_out = _Method(self._try_out)
        self.refused: dict[str, str] = {}
        self.deaths = 0
        self._works: set[asyncio.Task[Any]] = set()

    async def _annotate_or_die(
        self,
        unit: str,
        problems: list[Problem],
        client: object,
        refused: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, int]:
        tried = [p for p in problems if p.problem_id not in refused]
        await self._outlive(self._annotate(unit, tried, client), tried)
        self.refused |= refused
        return {"problems": len(problems)}

    async def _try_out(self, problem: Problem, client: object) -> None:
        assert not self._works, "others are there"
        await self._outlive(asyncio.sleep(self._seconds), [problem])

    async def _outlive(self, coroutine: Coroutine[Any, Any, Any], tried: list[Problem]) -> None:
        if any(p.answer == "fatal" for p in tried):
            asyncio.get_running_loop().call_later(0.005, self._die)
        work = asyncio.create_task(coroutine)
        self._works.add(work)
        try:
            await work
        except asyncio.CancelledError as error:
            raise ActorUnavailableError("it died", None) from error
        finally:
            self._works.discard(work)

    def _die(self) -> None:
        self.deaths += 1
        self.inside = self.waiting = 0
        for work in self._works:
            work.cancel()


class _Pool:
    """As many engines as `engines` says at each look; all have room, or all are full."""

    def __init__(self, engines: list[int], reading: Reading) -> None:
        self._engines, self._reading = engines, reading

    async def readings(self) -> dict[int, Reading]:
        count = self._engines.pop(0) if len(self._engines) > 1 else self._engines[0]
        return dict.fromkeys(range(count), self._reading)


def _problems(*answers: str) -> list[Problem]:
    return [Problem(f"{answer} {i}", "how many?", answer) for i, answer in enumerate(answers)]


def _feed(
    pool: _Pool,
    units: dict[str, list[Problem]],
    seconds: float = 0.02,
    kind: type[_Labeler] = _Labeler,
):
    done: Counter[str] = Counter()
    reported: Counter[str] = Counter()
    labelers: list[_Labeler] = []

    def make_labeler() -> _Labeler:
        labelers.append(kind(seconds, done))
        return labelers[-1]

    def finished(unit: str, counts: dict[str, int]) -> None:
        reported[unit] += counts["problems"]

    asyncio.run(
        asyncio.wait_for(
            dispatch.dispatch_units(pool, None, make_labeler, units, finished, None, 16), 30.0
        )
    )
    return labelers, done, reported


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "POLL_S", 0.02)


def test_every_unit_is_done_once_while_engines_come_and_go():
    units = {f"unit {i}": _problems(*["7"] * 8) for i in range(40)}
    pool = _Pool([1, 1, 3, 3, 0, 0, 2], Reading(0, 0, 64))
    labelers, done, reported = _feed(pool, units)
    assert done == Counter(list(units)) and set(reported.values()) == {8}
    assert len(labelers) == 3
    assert min(labeler.peak for labeler in labelers) > COLD_START


def test_full_engines_hold_the_work_back():
    units = {f"unit {i}": _problems(*["7"] * 8) for i in range(12)}
    labelers, done, _ = _feed(_Pool([1], Reading(64, 1000, 64)), units)
    assert len(done) == 12
    assert labelers[0].peak <= COLD_START


def test_a_unit_that_fails_ends_the_dispatch():
    units = {
        "good": _problems(*["7"] * 8),
        "bad": _problems(*["unwritable"] * 8),
        "late": _problems(*["7"] * 8),
    }
    with pytest.raises(ValueError, match="cannot be written"):
        _feed(_Pool([1], Reading(0, 0, 64)), units)


@pytest.mark.parametrize("engines", [1, 3])
def test_a_problem_that_ends_labelers_is_refused_and_no_other_one(engines: int):
    units = {f"unit {i}": _problems(*["7"] * 4) for i in range(30)}
    units["unit 5"] = _problems("7", "fatal", "7", "7")
    units["unit 6"] = _problems("fatal")
    pool = _Pool([engines], Reading(0, 0, 64))
    labelers, done, reported = _feed(pool, units, kind=_Mortal)
    assert done == Counter(list(units)) and reported.keys() == units.keys()
    refused = {name: why for labeler in labelers for name, why in labeler.refused.items()}
    assert refused.keys() == {"fatal 0", "fatal 1"}
    assert all("ends whenever" in why for why in refused.values())
    # Once beside others and once alone, for each: Ray's own retries are not there.
    assert sum(labeler.deaths for labeler in labelers) <= 4


def test_what_a_labeler_had_seen_before_it_died_still_counts() -> None:
    labeler = dispatch._Labeler(None, share=1)
    told = [WorkSeen(problems=3, responses=6), None, WorkSeen(), WorkSeen(problems=1, responses=2)]

    async def allow(problems: int) -> tuple[int, int, WorkSeen]:
        seen = told.pop(0)
        if seen is None:
            raise ActorUnavailableError("it died", None)
        return 0, 0, seen

    class Actor:
        pass

    labeler.actor = Actor()
    labeler.actor.allow = _Method(allow)
    for problems in (3, 3, 3, 4):
        asyncio.run(dispatch._poll(labeler))
        assert (labeler.lost + labeler.seen).problems == problems


class _Source:
    """Ten units at a time, as asked; some turn out to be done elsewhere."""

    def __init__(self, units: list[str], elsewhere: set[str]) -> None:
        self.left, self.todo, self.elsewhere = set(units), list(units), elsewhere
        self.begun: list[str] = []
        self.hungry: list[bool] = []

    @property
    def over(self) -> bool:
        return not self.left

    @property
    def wanted(self) -> bool:
        return False

    async def take(self, hungry: bool) -> list[str]:
        self.hungry.append(hungry)
        await asyncio.sleep(0.005)
        found, self.todo = self.todo[:10], self.todo[10:]
        if not found:
            self.left -= self.elsewhere
        return found

    def begin(self, unit: str) -> bool:
        if unit in self.elsewhere:
            return False
        self.begun.append(unit)
        return True


def test_units_that_are_shared_are_taken_as_there_is_room() -> None:
    units = {f"unit {i}": _problems(*["7"] * 8) for i in range(40)}
    source = _Source(list(units), {f"unit {i}" for i in range(0, 40, 4)})
    done: Counter[str] = Counter()

    def finished(unit: str, counts: dict[str, int]) -> None:
        source.left.discard(unit)

    async def work() -> None:
        labelers = [_Labeler(0.02, done) for _ in range(2)]
        await dispatch.dispatch_units(
            _Pool([2], Reading(0, 0, 64)), None, labelers.pop, units, finished, None, 16,
            source=source,
        )  # fmt: skip

    asyncio.run(asyncio.wait_for(work(), 30.0))
    assert done == Counter(source.begun) and len(done) == 30
    assert all(source.hungry) and 5 <= len(source.hungry) <= 12


def test_the_work_ends_when_others_have_done_what_is_under_way() -> None:
    units = {"quick": _problems("7"), "slow": _problems("7")}
    source = _Source(list(units), set())

    class Labeler(_Labeler):
        async def _one(self, problem: Problem) -> None:
            source.left.clear()
            await asyncio.sleep(3600)

    async def work() -> None:
        await dispatch.dispatch_units(
            _Pool([1], Reading(0, 0, 64)), None, lambda: Labeler(0.0, Counter()), units,
            lambda unit, counts: None, None, 16, source=source,
        )  # fmt: skip

    asyncio.run(asyncio.wait_for(work(), 30.0))
