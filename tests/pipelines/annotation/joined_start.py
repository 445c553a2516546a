"""One start that works on a run with others, without Ray: a labeler that sleeps, and writes rows.

python -m tests.pipelines.annotation.joined_start RUN UNITS SECONDS SLOTS
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from types import MappingProxyType, SimpleNamespace
from typing import Any

from actors.rollout.labeler import ELSEWHERE
from pipelines.annotation.dispatch import dispatch_units
from pipelines.annotation.unit_leases import UnitSource, unit_leases
from stepwiser.annotation.admission import Reading
from stepwiser.annotation.outlook import WorkSeen
from stepwiser.data.records import ChunkValue, Problem, Trajectory
from stepwiser.run.store import RunStore
from stepwiser.run.units import BY, is_finished, read_summary, write_unit
from tests.stepwiser.run.annotated_run import COUNTS, trajectory, values


def unit_names(count: int) -> list[str]:
    return [f"{(i * 2654435761) % 2**32:08x}" for i in range(count)]


class Labeler:
    """As `MonteCarloLabeler` to the dispatch, on as many units at a time as it has slots."""

    def __init__(self, store: RunStore, start: str, seconds: float, slots: int) -> None:
        self._store, self._start, self._seconds = store, start, seconds
        self._slots, self._free = slots, asyncio.Semaphore(slots)
        self._under_way = 0
        self.annotate = SimpleNamespace(remote=self._annotate)
        self.allow = SimpleNamespace(remote=self._allow)

    async def _allow(self, problems: int) -> tuple[int, int, WorkSeen]:
        # Full where all slots are: only so many are given.
        waiting = problems if self._under_way >= self._slots else 0
        return self._under_way, self._under_way + waiting, WorkSeen()

    async def _annotate(
        self,
        unit: str,
        problems: list[Problem],
        client: object,
        refused: Any = MappingProxyType({}),
    ) -> dict[str, int]:
        self._under_way += 1
        try:
            async with self._free:
                return await self._work(unit)
        finally:
            self._under_way -= 1

    async def _work(self, unit: str) -> dict[str, int]:
        if await asyncio.to_thread(is_finished, self._store, unit):
            return self._counts(unit)
        await asyncio.sleep(self._seconds)
        row = trajectory(f"{unit} of {problems_of(unit)[0].problem_id}")
        tables = {
            "trajectories": Trajectory.to_table([row]),
            "values": ChunkValue.to_table(values(row)),
        }
        summary = {"counts": COUNTS, "rejects": [], "seconds": self._seconds, BY: self._start}
        if await asyncio.to_thread(write_unit, self._store, unit, tables, summary):
            return dict(COUNTS)
        return self._counts(unit)

    def _counts(self, unit: str) -> dict[str, int]:
        elsewhere = read_summary(self._store, unit)[BY] != self._start
        return COUNTS | ({ELSEWHERE: 1} if elsewhere else {})


class Pool:
    async def readings(self) -> dict[int, Reading]:
        return {0: Reading(0, 0, 64)}


def problems_of(unit: str) -> list[Problem]:
    return [Problem(f"p {unit}", "how many?", "7")]


def main(run: str, count: int, seconds: float, slots: int) -> None:
    store = RunStore(run)
    units = {name: problems_of(name) for name in unit_names(count)}
    others: list[str] = []
    with unit_leases(store, list(units), print) as (held, leases):

        def finished(unit: str, counts: dict[str, int]) -> None:
            held.finished(unit, elsewhere=ELSEWHERE in counts)

        def make_labeler() -> Labeler:
            return Labeler(store, leases.owner, seconds, slots)

        print(f"owner {leases.owner}", flush=True)
        source = UnitSource(held, others.extend)
        work = dispatch_units(Pool(), None, make_labeler, units, finished, None, 16, source=source)
        asyncio.run(work)
        others += held.news()
    print(f"did {held.done} others {len(others)}", flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
        sys.exit(0)
    sys.exit(130)
