"""Units to labelers, as many problems at a time as the engines have room for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.pool.pool import EnginePool, PoolClient
from actors.ray_messages import hush
from actors.rollout.labeler import LabelerOptions, MonteCarloLabeler
from stepwiser.annotation.admission import COLD_START, Admission
from stepwiser.annotation.outlook import WorkSeen
from stepwiser.data.records import Problem
from stepwiser.errors import UserError

POLL_S = 1.0
"""Between two looks at the engines; they report once a second."""
MAX_LABELERS = 16
"""Each is a process on the driver's machine, and serves several engines without being busy."""


OnUnitFinished = Callable[[str, dict[str, int]], None]
"""Told the name and the counts of a unit whose rows are on disk; `ELSEWHERE` among the counts says
that another start's are."""

OnWorkSeen = Callable[[WorkSeen], None]
"""Told now and then what all problems that were begun have come to."""

UnitsWanted = Callable[[int], Awaitable[int | None]]
"""Told how many units are under way, says how many more may begin; None: nothing is wanted any
more, and what is under way is given up."""


class UnitSource(Protocol):
    """Units that are taken as there is room for them, since others take some too."""

    @property
    def over(self) -> bool:
        """Every unit is done."""
        ...

    @property
    def wanted(self) -> bool:
        """Whether some may be taken although there is no room yet."""
        ...

    async def take(self, hungry: bool) -> list[str]:
        """Units to be begun, in this order; none, after a while, where there is none now.
        ``hungry``: there is room."""
        ...

    def begin(self, unit: str) -> bool:
        """Whether one that was taken is still to be done here; it is under way then."""
        ...


async def annotate_units(
    pool: EnginePool,
    options: LabelerOptions,
    root: str,
    units: Mapping[str, Sequence[Problem]],
    finished: OnUnitFinished,
    wanted: UnitsWanted | None = None,
    seen: OnWorkSeen | None = None,
    source: UnitSource | None = None,
) -> None:
    """`dispatch_units` with labelers of its own, which write the units' rows below ``root``."""
    # Beside the driver, whose node stays: one on a preempted node would lose its units with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    workers: list[Any] = []

    def make_labeler() -> Any:
        workers.append(MonteCarloLabeler.options(scheduling_strategy=here).remote(options, root))
        return workers[-1]

    try:
        await dispatch_units(
            pool,
            pool.client(),
            make_labeler,
            units,
            finished,
            wanted,
            options.annotate.responses,
            seen,
            source,
        )
    except asyncio.CancelledError:  # Ctrl-C, with their work under way
        hush()
        raise
    finally:
        for worker in workers:
            ray.kill(worker)


@dataclass
class _Labeler:
    actor: Any
    share: int = 0
    """Problems it may have under way."""
    under_way: int = 0
    unfinished: int = 0
    """Under way or waiting in it."""
    seen: WorkSeen = field(default_factory=WorkSeen)
    lost: WorkSeen = field(default_factory=WorkSeen)
    """What its processes before this one had seen."""
    units: dict[asyncio.Task[dict[str, int]], str] = field(default_factory=dict)

    @property
    def has_capacity(self) -> bool:
        # One more than it may work on waits for it, so that none has to be fetched first.
        return self.unfinished <= self.share


async def dispatch_units(
    pool: EnginePool,
    client: PoolClient,
    make_labeler: Callable[[], Any],
    units: Mapping[str, Sequence[Problem]],
    finished: OnUnitFinished,
    wanted: UnitsWanted | None,
    width: int,
    seen: OnWorkSeen | None = None,
    source: UnitSource | None = None,
) -> None:
    """Have every unit annotated, or as many as are ``wanted``; ``width``: see `Admission`.

    ``source``: where the units are taken from that are shared with other starts; then this ends
    when all are done, by whomever, and what is still under way here has been done elsewhere.

    ``make_labeler`` makes a labeler: one for each engine, as engines come. Raises what a labeler
    raised; units that are not finished then are not written. A labeler that dies gets its units
    again; a unit that was there at each of several deaths waits until it can have a labeler to
    itself, and then problems that end this one too are rejected.
    """
    admission = Admission(width)
    todo = deque(units if source is None else ())
    taking: asyncio.Task[list[str]] | None = None
    isolated: list[str] = []
    labelers: list[_Labeler] = []
    polled = 0.0
    try:
        while (
            todo or isolated or any(labeler.units for labeler in labelers)
            if source is None
            else not source.over
        ):
            await asyncio.gather(*map(_poll, labelers))
            if time.monotonic() - polled >= POLL_S:
                polled = time.monotonic()
                readings = await pool.readings()
                problems = sum(labeler.under_way for labeler in labelers)
                allowed = admission.observe(readings, problems) or COLD_START
                while len(labelers) < min(MAX_LABELERS, max(1, len(readings))):
                    labelers.append(_Labeler(make_labeler()))
                for i, labeler in enumerate(labelers):
                    labeler.share = max(1, (allowed + i) // len(labelers))
                await asyncio.gather(*map(_poll, labelers))
                if seen:
                    seen(sum((one.lost + one.seen for one in labelers), WorkSeen()))
            under_way = sum(len(labeler.units) for labeler in labelers)
            more = await wanted(under_way) if wanted else len(todo)
            if more is None:
                return
            hungry = _assign(client, labelers, todo, units, more, source)
            if source is not None and taking is None and (hungry or source.wanted):
                taking = asyncio.create_task(source.take(hungry))
            for labeler in labelers if isolated and not todo else ():
                if isolated and not labeler.units:
                    unit = isolated.pop()
                    work = _annotate_isolated(labeler, unit, units[unit], client)
                    labeler.units[asyncio.create_task(work)] = unit
            tasks = {task for labeler in labelers for task in labeler.units}
            rest = max(0.0, polled + POLL_S - time.monotonic())
            if awaited := tasks | ({taking} if taking else set()):
                await asyncio.wait(awaited, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(rest)  # nothing is wanted for now
            for labeler in labelers:
                for task in [task for task in labeler.units if task.done()]:
                    unit = labeler.units.pop(task)
                    if isinstance(task.exception(), ActorUnavailableError):
                        isolated.append(unit)
                    else:
                        finished(unit, task.result())
            if taking is not None and taking.done():
                todo.extend(taking.result())
                taking = None
    finally:
        if taking is not None:
            taking.cancel()
        for labeler in labelers:
            for task in labeler.units:
                task.cancel()


def _assign(
    client: PoolClient,
    labelers: Sequence[_Labeler],
    todo: deque[str],
    units: Mapping[str, Sequence[Problem]],
    most: int,
    source: UnitSource | None = None,
) -> bool:
    """Units to the labelers that have least, until none has capacity, at most so many; returns
    whether there is capacity left and no unit."""
    for _ in range(min(most, len(todo))):
        labeler = min(labelers, key=lambda one: one.unfinished - one.share)
        if not labeler.has_capacity:
            return False
        unit = todo.popleft()
        if source is not None and not source.begin(unit):
            continue
        labeler.units[asyncio.create_task(_annotate(labeler, unit, units[unit], client))] = unit
        labeler.unfinished += len(units[unit])
    return not todo and any(labeler.has_capacity for labeler in labelers)


async def _annotate(
    labeler: _Labeler, unit: str, problems: Sequence[Problem], client: PoolClient
) -> dict[str, int]:
    counts: dict[str, int] = await labeler.actor.annotate.remote(unit, list(problems), client)
    return counts


async def _annotate_isolated(
    labeler: _Labeler, unit: str, problems: Sequence[Problem], client: PoolClient
) -> dict[str, int]:
    """Find the problems that end the labeler, one by one, and annotate the others."""
    refused = {}
    for problem in problems:
        try:
            await labeler.actor.try_out.remote(problem, client)
        except ActorUnavailableError:
            refused[problem.problem_id] = "the labeler's process ends whenever it has this problem"
    try:
        counts: dict[str, int] = await labeler.actor.annotate.remote(
            unit, list(problems), client, refused
        )
    except ActorUnavailableError as error:
        raise UserError(
            f"annotation stopped: the labeler's process ends whenever it has unit {unit}, and with "
            "none of its problems alone. Finished units are kept"
        ) from error
    return counts


async def _poll(labeler: _Labeler) -> None:
    """Tell a labeler its share, and learn what it still has to do."""
    if not labeler.units and not labeler.share:
        return
    try:
        told = await labeler.actor.allow.remote(labeler.share)
    except RayActorError:
        # It is being restarted, and its units with it.
        labeler.under_way, labeler.unfinished = 0, len(labeler.units)
        return
    labeler.under_way, unfinished, seen = told
    if seen.responses < labeler.seen.responses:  # it was restarted
        labeler.lost += labeler.seen
    labeler.seen = seen
    # What was handed out a moment ago may not have arrived: it counts one problem at least.
    labeler.unfinished = max(unfinished, len(labeler.units))
