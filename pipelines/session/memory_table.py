"""The memory plan as a table, held against this machine or the nodes of a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines.monitoring.formatting import titled_table
from stepwiser.config import RunConfig
from stepwiser.errors import UserError
from stepwiser.memory import remedies
from stepwiser.memory.machine import Node, gpu_memory, this_machine
from stepwiser.memory.plan import Process, StageMemory, gigabytes, place, plan_memory, shortfalls
from stepwiser.memory.processes import Parts
from stepwiser.prompting.prompt_format import resolve_model

PARTS = ("base", "weights", "gradients", "optimizer", "activations", "KV cache", "copies")


def model_folder(name: str) -> str | None:
    """The folder of a model; None for one that is not on this machine, or not yet made."""
    try:
        folder = resolve_model(name)
    except UserError:
        return None
    return folder if Path(folder).is_dir() else None


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
    plans = [plan_memory(config, stage, model_folder) for stage in stages]
    short = [line for plan in plans for line in shortfalls(plan, nodes)]
    if not short:
        return plans, None

    def fits(changed: RunConfig) -> bool:
        return not any(
            shortfalls(plan_memory(changed, stage, model_folder), nodes) for stage in stages
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
        of = "" if one.node.limit is None else f" of {gigabytes(one.node.limit)}"
        words = f"{one.node.name}: {gigabytes(one.host_bytes)}{of} in stage {largest.stage}"
        if one.node.limit is None:
            words += ", and nobody knows how much it has"
        elif one.node.others + one.host_bytes > one.node.limit:
            words += f"; other programs have {gigabytes(one.node.others)} now, which is too much"
        if one.gpu_bytes:
            has = "unknown" if one.node.gpu_limit is None else gigabytes(one.node.gpu_limit)
            words += f"; on its fullest GPU {gigabytes(one.gpu_bytes)} of {has}"
        console.print(words, highlight=False, soft_wrap=True)
    for name in dict.fromkeys(name for plan in plans for name in plan.unknown):
        console.print(
            f"[yellow]memory for {name} is not planned: it is no folder of this machine[/]",
            highlight=False,
            soft_wrap=True,
        )


def _table(plan: StageMemory) -> Table:
    table = titled_table(f"Memory of a process in stage {plan.stage}, GB", "process", "all", *PARTS)
    for process in plan.processes:
        _add(table, process, process.host, process.role)
        if process.gpu:
            _add(table, process, process.gpu, f"{process.role}, GPU")
    return table


def _add(table: Table, process: Process, parts: Parts, name: str) -> None:
    shown = [f"{parts[part] / 1e9:.2f}" if parts.get(part) else "" for part in PARTS]
    count = f" x {process.count}" if process.count > 1 else ""
    table.add_row(f"{name}{count}", f"{sum(parts.values()) / 1e9:.2f}", *shown)
