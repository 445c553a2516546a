"""EngineRegistry: what the engines and the clients of a pool know of each other.

Its newest weights are what an engine loads before it answers anything; its list of engines is how
clients in other processes learn of those that come and go.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray

from actors.engine.engine import EngineStats
from actors.pool.routing import Load
from actors.weight_sync.transfer import TransferSpec
from stepwiser.annotation.admission import Reading

WATCH_S = 1.0
"""Longest that a client waits for news of the engines: at most one question a second and client,
and none from a client that has nothing to do."""
COPY_S = 120.0
"""Longest that an engine waits for the copy of weights that were sent past the registry."""
_FORGET_S = 5.0
"""A client that has not asked for so long has nothing waiting."""


@dataclass(frozen=True)
class Publication:
    """Weights that every engine of a pool shall have."""

    serial: int
    """Orders publications; versions need not grow, since a learner may resume an earlier one."""
    version: int
    source: str | list[Any] | None
    """A directory of safetensors, or references to safetensors blobs; None until there is a copy
    of what a learner sent."""
    transfer: TransferSpec | None = None
    """For an engine that takes part in the learner's transfer."""

    async def payload(self) -> str | list[bytes] | TransferSpec:
        """Raises StaleWeights when there is nothing to load from yet."""
        if self.transfer is not None:
            return self.transfer
        if self.source is None:
            raise StaleWeights("the newest weights have not been copied yet")
        if isinstance(self.source, str):
            return self.source
        return list(await asyncio.gather(*self.source))


class StaleWeights(RuntimeError):
    """An engine has older weights than the caller knows of, and cannot get newer ones."""


@dataclass(frozen=True)
class Membership:
    """The engines that take requests."""

    serial: int = 0
    """Grows with every change; 0 from a registry that has restarted and not been told yet."""
    engines: Mapping[int, Any] | None = None
    """Actor handles by index; None where the receiver has this serial already."""
    elsewhere: Mapping[int, Load] | None = None
    """What other clients have at each engine."""
    closed: str | None = None
    """Why there will be no engine any more."""


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=10_000)
class EngineRegistry:
    """Keeps what engines need when they start: the newest publication, and their counters.

    The blobs are copied: their publisher, often a training worker, may die before they are needed.
    """

    def __init__(self) -> None:
        self._newest: Publication | None = None
        self._posted = asyncio.Event()
        self._in_use = 0
        self._stats: dict[int, EngineStats] = {}
        self._ran_out: Counter[int] = Counter()
        self._loads: dict[int, Mapping[str, Load]] = {}
        self._totals: dict[int, Load] = {}
        self._members: dict[int, Any] = {}
        self._membership = 0
        self._closed: str | None = None
        self._queues: dict[str, tuple[float, int]] = {}
        self._bell = asyncio.Event()

    # --- weights --------------------------------------------------------------------------------

    async def post(self, publication: Publication | None) -> tuple[Publication | None, Membership]:
        """Put up a publication; returns the one it replaces, and the engines that need it.

        An engine that is not among them is told by `register` to load it first.
        """
        replaced = self._newest
        self._set_newest(publication)
        return replaced, Membership(self._membership, self._members)

    async def withdraw(self, serial: int, replaced: Publication | None) -> None:
        """Take down a publication that no engine has, unless there is a newer one already."""
        if self._newest is not None and self._newest.serial == serial:
            self._set_newest(replaced)

    def _set_newest(self, publication: Publication | None) -> None:
        self._newest = publication
        self._posted.set()
        self._posted = asyncio.Event()

    async def supply(self, serial: int, refs: list[Any]) -> None:
        """The blobs of a publication that was sent past this registry."""
        if self._newest is not None and self._newest.serial == serial:
            self._set_newest(replace(self._newest, source=refs, transfer=None))
            await self.keep(serial)

    async def keep(self, serial: int) -> None:
        """Take over the blobs of a publication that every engine has loaded."""
        publication = self._newest
        if publication is None or publication.serial != serial or publication.source is None:
            return
        payload = await publication.payload()
        if not isinstance(payload, list) or self._newest is not publication:
            return
        refs = [ray.put(blob) for blob in payload]
        self._newest = Publication(serial, publication.version, refs)

    async def newest(self) -> Publication | None:
        """None before the first publication.

        Waits for the copy of weights that were sent past this registry. Raises StaleWeights when
        there is none in time, and when engines have later weights than this registry, which has
        restarted.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COPY_S):
                while self._newest is not None and self._newest.source is None:
                    await self._posted.wait()
        if self._in_use > (self._newest.serial if self._newest else 0):
            raise StaleWeights("the newest weights were lost with the registry that kept them")
        if self._newest is not None and self._newest.source is None:
            raise StaleWeights(f"the newest weights had no copy after {COPY_S:g} s")
        return self._newest

    # --- engines --------------------------------------------------------------------------------

    async def register(
        self,
        membership: int,
        engines: Mapping[int, Any],
        loaded: Mapping[int, int],
        closed: str | None = None,
        published: Publication | None = None,
    ) -> list[int]:
        """Set the engines that take requests; ``membership`` grows with every change.

        ``loaded``: the publication that each new engine has. ``published``: what the pool's own
        process published last. Returns the engines that are left out, as a newer one has been
        posted since. Said again and again, so that a restarted registry knows.
        """
        if published is not None and self._newest is None and published.serial >= self._in_use:
            self._newest = published
        newest = self._newest.serial if self._newest else 0
        behind = [i for i, serial in loaded.items() if i not in self._members and serial < newest]
        if membership > self._membership or closed != self._closed:
            self._members = {i: engine for i, engine in engines.items() if i not in behind}
            self._membership, self._closed = membership, closed
            self._bell.set()
            self._bell = asyncio.Event()
        return behind

    # Repeated by the client: Ray would tell the terminal about each one that a shutdown ends.
    @ray.method(max_task_retries=0)
    async def watch(self, seen: int, client: str, waiting: int) -> Membership:
        """The engines and what other clients ask of them, now or when there is a change.

        ``seen``: the newest serial the client knows. ``waiting``: sequences in its own queue.
        """
        self._queues[client] = (time.monotonic(), waiting)
        if self._membership <= seen and self._closed is None:
            # Without a change, the loads are news enough.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._bell.wait(), WATCH_S)
        none = Load()
        elsewhere = {
            # Not a sum for each client: it would take this process most of its time at a thousand
            # engines.
            index: self._totals.get(index, none) - self._loads.get(index, {}).get(client, none)
            for index in self._members
        }
        engines = self._members if self._membership > seen else None
        return Membership(self._membership, engines, elsewhere, self._closed)

    async def report(
        self, index: int, serial: int, stats: EngineStats, loads: Mapping[str, Load]
    ) -> None:
        """What an engine serves, its counters, and its open work by client."""
        self._in_use = max(self._in_use, serial)
        self._stats[index] = stats
        self._loads[index] = loads
        self._totals[index] = sum(loads.values(), Load())

    async def note_ran_out(self, index: int) -> None:
        """An engine ended since a pass did not fit on its GPU."""
        self._ran_out[index] += 1

    async def ran_out(self, index: int) -> int:
        """How often that was so."""
        return self._ran_out[index]

    async def last_stats(self, index: int) -> EngineStats | None:
        """The counters an engine last sent."""
        return self._stats.get(index)

    async def all_stats(self) -> dict[int, EngineStats]:
        """The last counters of every engine there has been; one that has gone runs nothing."""
        return {
            index: stats
            if index in self._members
            else replace(stats, sequences_running=0, sequences_waiting=0, kv_usage=None)
            for index, stats in self._stats.items()
        }

    async def readings(self) -> dict[int, Reading]:
        """What each engine has to do, with its share of what waits in the clients."""
        now = time.monotonic()
        self._queues = {c: q for c, q in self._queues.items() if now - q[0] < _FORGET_S}
        share = sum(waiting for _, waiting in self._queues.values()) / max(1, len(self._members))
        readings = {}
        for index in self._members:
            stats = self._stats.get(index, EngineStats())
            readings[index] = Reading(
                stats.sequences_running,
                stats.sequences_waiting + round(share),
                max(1, stats.max_num_seqs),
                stats.kv_usage,
            )
        return readings
