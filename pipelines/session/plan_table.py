"""The resource plan as a table, held against a cluster or the config's expectation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from rich.table import Table

from pipelines.monitoring.formatting import titled_table
from pipelines.monitoring.progress import make_console
from pipelines.session.memory_table import memory_plan, planned_nodes, print_memory
from stepwiser.config import RunConfig
from stepwiser.run.resource_plan import MARKET_LABEL, SPOT, ResourcePlan, plan_run


def local_cpus(config: RunConfig) -> float:
    """Logical CPUs of a local Ray: the machine's, unless the config says otherwise."""
    return float(config.cluster.cpus or os.cpu_count() or 1)


def expected_resources(config: RunConfig) -> dict[str, float]:
    """What `--plan` may assume without joining a cluster."""
    gpus = float(config.cluster.expected_gpus)
    # A GPU node brings its own CPUs; a dozen a GPU is what A100 machines have.
    return {"CPU": max(local_cpus(config), 12.0 * gpus), "GPU": gpus}


def more_room(owns_ray: bool) -> str:
    """What to do where there is too little, by whether Ray is of this process or a cluster's."""
    lower = "lower engine.count / learner.workers"
    if owns_ray:
        return f"{lower}, or raise cluster.cpus so that processes share this machine's cores"
    return (
        f"{lower}; where an autoscaler adds nodes, give it time (cluster.wait_for_nodes_s=900), or "
        "begin with the engines that fit and let others join as nodes come (annotate.max_engines)"
    )


def plan_table(plans: Sequence[ResourcePlan]) -> Table:
    table = titled_table("Resource plan", "stage", "holds", "CPU", "GPU", left=("stage", "holds"))
    for plan in plans:
        holds = ", ".join(f"{n.count} {n.role}{'s' if n.count > 1 else ''}" for n in plan.needs)
        total = plan.total
        table.add_row(plan.stage, holds or "driver only", f"{total['CPU']:g}", f"{total['GPU']:g}")
    return table


def shortfalls(
    plans: Sequence[ResourcePlan],
    available: Mapping[str, float],
    staying: Mapping[str, float] | None = None,
) -> list[str]:
    return [line for plan in plans for line in plan.shortfalls(available, staying)]


def staying_resources() -> dict[str, float]:
    """What the nodes of the Ray that is there have, without those that can be taken back."""
    import ray

    staying = {"CPU": 0.0, "GPU": 0.0}
    for node in ray.nodes():
        if node["Alive"] and node["Labels"].get(MARKET_LABEL) != SPOT:
            for name in staying:
                staying[name] += node["Resources"].get(name, 0.0)
    return staying


def print_plan(config: RunConfig, stages: Sequence[str]) -> bool:
    """Print the plan; False where it cannot fit what the config says is there."""
    console = make_console()
    plans = plan_run(config, stages)
    console.print(plan_table(plans))
    available = expected_resources(config)
    missing = shortfalls(plans, available)
    for line in missing:
        console.print(f"[red]{line}[/red]")
    if not missing:
        words = ", ".join(f"{amount:g} {name}" for name, amount in available.items() if amount)
        console.print(f"fits {words}")
    nodes = planned_nodes(config, available["CPU"], available["GPU"])
    memory, refusal = memory_plan(config, stages, nodes)
    print_memory(console, memory, nodes)
    if refusal is not None:
        console.print(refusal, style="red", markup=False, soft_wrap=True)
    return not missing and refusal is None
