"""Which engines a pool should have: decisions without I/O, from what the cluster looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """Where an engine is in its life."""

    STARTING = "starting"
    """Waits for its place, or loads the model."""
    SERVING = "serving"
    RETURNING = "returning"
    """Its process ended and Ray starts it again."""
    DRAINING = "draining"
    """Gets no new request; ends when it has answered those it has."""


@dataclass(frozen=True)
class ClusterNodes:
    """The nodes of the cluster, by id."""

    alive: frozenset[str]
    draining: Mapping[str, float]
    """When each node that is about to go will go: seconds since the epoch, 0 where not known."""


@dataclass(frozen=True)
class EngineState:
    """One engine as its pool sees it."""

    index: int
    phase: Phase
    node: str | None
    """None while it waits for a place."""
    displaced: bool = False
    """Its node is gone and Ray has found no other for it."""
    idle: bool = False
    """Draining, and all its requests are answered."""
    deadline: float = 0.0
    """When its node goes, once that is known."""


@dataclass(frozen=True)
class ScalingPlan:
    """What to do, in this order."""

    drain: Mapping[int, float]
    """Engines that get no more requests, each with its deadline."""
    remove: Sequence[int]
    """Engines that are ended and whose place is given back."""
    start: int
    """New engines to ask for."""


def plan_scaling(
    engines: Sequence[EngineState], nodes: ClusterNodes, wanted: int, now: float
) -> ScalingPlan:
    """What a pool that wants ``wanted`` engines should change.

    Engines that wait for a place count: their placement groups are what the autoscaler sees, and
    they start by themselves when a node comes. An engine on a node that drains is replaced at once
    and goes when it is idle, or when the node does.
    """
    drain: dict[int, float] = {}
    remove: list[int] = []
    staying = 0
    for engine in engines:
        if engine.displaced or (engine.node is not None and engine.node not in nodes.alive):
            remove.append(engine.index)
        elif engine.phase is Phase.DRAINING:
            if engine.idle or 0 < engine.deadline <= now:
                remove.append(engine.index)
        elif engine.node is not None and engine.node in nodes.draining:
            if engine.phase is Phase.SERVING:
                drain[engine.index] = nodes.draining[engine.node]
            else:
                remove.append(engine.index)
        else:
            staying += 1
    return ScalingPlan(drain, remove, max(0, wanted - staying))
