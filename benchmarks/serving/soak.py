"""Half an hour of more clients than the service can answer: its memory, and what it answers."""

from __future__ import annotations

from statistics import mean

from rich.console import Console

from benchmarks.process_monitor import DRIVER, Moment, ProcessMonitor, memory_growth
from benchmarks.serving.load import measure_loads
from pipelines.monitoring.formatting import titled_table

CLIENTS = 256
"""Some two times what may wait: many are told to come again."""


async def measure_soak(url: str, seconds: float, console: Console) -> dict[str, float]:
    """soak_memory_ratio: resident memory of the service's processes in the last tenth by that in
    the second tenth, the largest of each kind summed up; soak_errors: answers that were neither
    200 nor 429, and broken connections."""
    with ProcessMonitor(lambda: 0) as monitor:
        load = (await measure_loads(url, (CLIENTS,), seconds))[CLIENTS]
    moments = monitor.moments
    tenth = len(moments) // 10
    first, last = moments[tenth : 2 * tenth], moments[-tenth:]
    _print(console, first, last)
    good = sum(load.statuses[status] for status in (200, 429))
    return {
        "soak_minutes": seconds / 60,
        "soak_solutions_per_s": load.goodput,
        "soak_memory_ratio": mean(map(_service, last)) / mean(map(_service, first)),
        "soak_errors": load.statuses.total() - good,
    }


def _service(moment: Moment) -> int:
    """Bytes; not those of the clients, which note every answer."""
    return sum(size for name, size in moment.memory.items() if name != DRIVER)


def _print(console: Console, first: list[Moment], last: list[Moment]) -> None:
    table = titled_table("memory", "process", "MB", "grew to")
    for name, ratio in memory_growth(first, last).items():
        if name != DRIVER:
            size = mean(m.memory[name] for m in first if name in m.memory)
            table.add_row(name, f"{size / 1e6:.0f}", f"{ratio:.3f}")
    console.print(table)
