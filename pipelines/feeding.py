"""Units to labelers, as many problems at a time as the engines have room for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayActorError

from actors.pool import EnginePool, PoolClient
from stepwiser.admission import COLD_START, Admission
from stepwiser.records import Problem

LOOK_S = 1.0
"""Between two looks at the engines; they report once a second."""
MOST_LABELERS = 16
"""Each is a process on the driver's machine, and serves several engines without being busy."""


@dataclass
class _Labeler:
    actor: Any
    share: int = 0
    """Problems it may have under way."""
    under_way: int = 0
    unfinished: int = 0
    """Under way or waiting in it."""
    units: dict[asyncio.Task[dict[str, int]], str] = field(default_factory=dict)

    @property
    def is_hungry(self) -> bool:
        # One more than it may work on waits for it, so that none has to be fetched first.
        return self.unfinished <= self.share


async def feed(
    pool: EnginePool,
    client: PoolClient,
    hire: Callable[[], Any],
    units: Mapping[str, Sequence[Problem]],
    finished: Callable[[str, dict[str, int]], None],
) -> None:
    """Have every unit annotated; ``finished`` is called with the name and counts of each.

    ``hire`` makes a labeler: one for each engine, as engines come. Raises what a labeler raised;
    units that are not finished then are not written.
    """
    admission = Admission()
    todo = deque(units)
    labelers: list[_Labeler] = []
    looked = 0.0
    try:
        while todo or any(labeler.units for labeler in labelers):
            await asyncio.gather(*map(_ask, labelers))
            if time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                readings = await pool.readings()
                under_way = sum(labeler.under_way for labeler in labelers)
                allowed = admission.observe(readings, under_way) or COLD_START
                while len(labelers) < min(MOST_LABELERS, max(1, len(readings))):
                    labelers.append(_Labeler(hire()))
                for i, labeler in enumerate(labelers):
                    labeler.share = max(1, (allowed + i) // len(labelers))
                await asyncio.gather(*map(_ask, labelers))
            _hand_out(client, labelers, todo, units)
            tasks = [task for labeler in labelers for task in labeler.units]
            rest = max(0.0, looked + LOOK_S - time.monotonic())
            await asyncio.wait(tasks, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            for labeler in labelers:
                for task in [task for task in labeler.units if task.done()]:
                    finished(labeler.units.pop(task), task.result())
    finally:
        for labeler in labelers:
            for task in labeler.units:
                task.cancel()


def _hand_out(
    client: PoolClient,
    labelers: Sequence[_Labeler],
    todo: deque[str],
    units: Mapping[str, Sequence[Problem]],
) -> None:
    """Units to the labelers that have least, until none is hungry."""
    while todo:
        labeler = min(labelers, key=lambda one: one.unfinished - one.share)
        if not labeler.is_hungry:
            return
        unit = todo.popleft()
        labeler.units[asyncio.create_task(_annotate(labeler, unit, units[unit], client))] = unit
        labeler.unfinished += len(units[unit])


async def _annotate(
    labeler: _Labeler, unit: str, problems: Sequence[Problem], client: PoolClient
) -> dict[str, int]:
    counts: dict[str, int] = await labeler.actor.annotate.remote(unit, list(problems), client)
    return counts


async def _ask(labeler: _Labeler) -> None:
    """Tell a labeler its share, and learn what it still has to do."""
    if not labeler.units and not labeler.share:
        return
    try:
        labeler.under_way, unfinished = await labeler.actor.allow.remote(labeler.share)
    except RayActorError:
        return  # it is being restarted, and its units with it
    # What was handed out a moment ago may not have arrived: it counts one problem at least.
    labeler.unfinished = max(unfinished, len(labeler.units))
