"""The memory plan as a table, held against this machine or the nodes of a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pipelines.monitoring.formatting import titled_table
from stepwiser.config import RunConfig
from stepwiser.errors import UserError
from stepwiser.prompting.hub import cache
from stepwiser.prompting.hub.folders import model_folder
from stepwiser.prompting.hub.reference import hub_model
from stepwiser.run.memory import remedies
from stepwiser.run.memory.machine import Node, gpu_memory, this_machine
from stepwiser.run.memory.plan import (
    Placed,
    StageMemory,
    gigabytes,
    place,
    plan_memory,
    shortfalls,
)
from stepwiser.run.memory.processes import Parts


def folder_here(name: str) -> str | None:
    """The folder of a model on this machine; None for one that is not here, or not yet."""
    try:
        hub = hub_model(name)
        if hub is None:
            return str(model_folder(name, weights=False))
        commit = hub.commit or cache.cached_commit(hub)
    except UserError:
        return None
    folder = cache.snapshot(hub.at(commit)) if commit else None
    return None if folder is None else str(folder)


def planned_nodes(config: RunConfig, cpus: float, gpus: float) -> list[Node]:
    """What a plan is held against before there is a Ray: this machine, or one of unknown size
    where the run will join others or have GPUs that are not here."""
    limit = gpu_memory() if gpus else None
    joins = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if joins or (gpus and limit is None):
        return [Node("a node", None, 0.0, cpus, gpus, None)]
    return [this_machine(cpus, gpus, limit)]


def running_nodes() -> list[Node]:
    """The nodes of the Ray that is there, the driver's first.

    Of other machines than this one counts what was free when they started.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    nodes: list[Node] = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has = node["Resources"]
        cpus, gpus = has.get("CPU", 0.0), has.get("GPU", 0.0)
        limit = gpu_memory() if gpus else None
        if node["NodeID"] == here:
            nodes.insert(0, this_machine(cpus, gpus, limit))
        else:
            free = has.get("memory", 0.0) + has.get("object_store_memory", 0.0)
            nodes.append(Node(node["NodeManagerAddress"], free, 0.0, cpus, gpus, limit))
    return nodes


def memory_plan(
    config: RunConfig, stages: Sequence[str], nodes: Sequence[Node]
) -> tuple[list[StageMemory], str | None]:
    """Of each stage, and why they cannot fit, with what to do about it; None where they can."""
    plans = [plan_memory(config, stage, folder_here) for stage in stages]
    short = [line for plan in plans for line in shortfalls(plan, nodes)]
    if not short:
        return plans, None

    def fits(changed: RunConfig) -> bool:
        return not any(
            shortfalls(plan_memory(changed, stage, folder_here), nodes) for stage in stages
        )

    return plans, f"{short[0]}; {remedies.words(*remedies.remedies(config, stages, fits))}"


def print_memory(console: Console, plans: Sequence[StageMemory], nodes: Sequence[Node]) -> None:
    """The processes of the stage that needs most, and what it comes to on each node."""
    plans = [plan for plan in plans if plan.processes]
    if not plans:
        return
    largest = max(plans, key=lambda plan: sum(one.host_bytes for one in place(plan, nodes)))
    console.print(_table(largest))
    for one in place(largest, nodes):
        console.print(_of_node(one, largest.stage), highlight=False, soft_wrap=True)
    for name in dict.fromkeys(name for plan in plans for name in plan.unknown):
        console.print(
            f"memory for {name} is not planned: it is not on this machine",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def _table(plan: StageMemory) -> Table:
    columns = ("process", "GB each", "of it")
    title = f"Memory in stage {plan.stage}, which needs most"
    table = titled_table(title, *columns, left=("process", "of it"))
    rest = [process for process in plan.processes if process.cpus == process.gpus == 0]
    for process in plan.processes:
        count = f" x {process.count}" if process.count > 1 else ""
        if process not in rest:
            _add(table, f"{process.role}{count}", process.host)
            if process.gpu:
                _add(table, f"{process.role}, GPU", process.gpu)
    _add(table, "all others", {one.role: one.host_bytes * one.count for one in rest})
    return table


def _add(table: Table, name: str, parts: Parts) -> None:
    shown = [f"{part} {size / 1e9:.2f}" for part, size in parts.items() if size >= 5e6]
    table.add_row(name, f"{sum(parts.values()) / 1e9:.2f}", ", ".join(shown))


def _of_node(one: Placed, stage: str) -> str:
    node = one.node
    words = f"{node.name}: {gigabytes(one.host_bytes)} in stage {stage}"
    if node.limit is None:
        words += "; what it has is not known yet"
    else:
        words += f" of the {gigabytes(node.limit)} at which Ray begins to kill"
        if node.others + one.host_bytes > node.limit >= one.host_bytes:
            words += f", but other programs have {gigabytes(node.others)} now: end some first"
    if one.gpu_bytes:
        has = "" if node.gpu_limit is None else f" of {gigabytes(node.gpu_limit)}"
        words += f"; {gigabytes(one.gpu_bytes)}{has} on its fullest GPU, estimated"
        if node.gpu_limit is not None and one.gpu_bytes > node.gpu_limit:
            words += ", which may be too much"
    return words
