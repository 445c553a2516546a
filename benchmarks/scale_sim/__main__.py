"""How far annotation scales, and what clusters that join one run are worth.

    python -m benchmarks.scale_sim                       an hour on two cores
    python -m benchmarks.scale_sim --quick               within five minutes
    python -m benchmarks.scale_sim --only simulation     the part that writes docs/scale.md

`simulation` measures service times, runs 1, 2 and 4 nodes beside their simulation, and simulates up
to 1,024 engines; `joining` has three clusters annotate one run in a bucket. The last line is one
JSON object.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.command import measure_parts
from benchmarks.scale_sim.services import A100_7B, EngineRate
from benchmarks.scale_sim.work import Work, drawn
from pipelines.monitoring.formatting import titled_table

ENGINES = (1, 8, 64, 256, 1024)
PROBLEMS = 20_000
"""A third of the paper's: the end of a run weighs three times as much as it would there."""
PER_ENGINE = 1_000
"""At most: few engines need not work for weeks to show what they make."""
FAST = EngineRate(A100_7B.slots, A100_7B.step_s, A100_7B.sequence_s / 4)
"""What if engines were nearly four times as fast?"""


def work_for(engines: int, quick: bool) -> Work:
    """The same problems for many engines, for few the first of them."""
    return drawn(min(PROBLEMS, PER_ENGINE * engines) // (25 if quick else 1))


def _simulation(console: Console, out: Path, quick: bool, measured: str | None) -> dict[str, Any]:
    from benchmarks.scale_sim.nodes import Measured, measure_nodes
    from benchmarks.scale_sim.page import page, picture
    from benchmarks.scale_sim.simulation import Outcome, bottleneck, efficiency, simulate

    known = Measured.read(Path(measured)) if measured else measure_nodes(out / "nodes", quick)
    out.mkdir(parents=True, exist_ok=True)
    known.write(out / "scale.json")
    table = titled_table("Real runs", "nodes", "tokens/s", "simulated", left=())
    for row in known.checks:
        cells = (f"{row['measured']:,.0f}", f"{row['predicted']:,.0f}")
        table.add_row(f"{row['engines']:g}", *cells)
    console.print(table)
    runs: dict[str, list[Outcome]] = {}
    for name, rate, sizes in (("paper", A100_7B, ENGINES), ("fast", FAST, (1, 256, 1024))):
        runs[name] = []
        for engines in sizes:
            runs[name].append(simulate(work_for(engines, quick), rate, known.services, engines))
            print_outcome(console, name, runs[name])
    one, *others = runs["paper"]
    figures: dict[str, Any] = {
        f"efficiency_{o.engines}": round(efficiency(one, o), 4) for o in others
    }
    figures["bottleneck"] = bottleneck(one, others[-1])
    (out / "scale.md").write_text(page(known, runs, figures, PROBLEMS, PER_ENGINE))
    (out / "scale.svg").write_text(picture(runs))
    console.print(f"wrote {out / 'scale.md'} and scale.svg", soft_wrap=True)
    return figures


def print_outcome(console: Console, name: str, runs: list[Any]) -> None:
    from benchmarks.scale_sim.simulation import efficiency

    one, last = runs[0], runs[-1]
    busiest = sorted(last.use, key=lambda part: -last.use[part])[:3]
    words = ", ".join(f"{part} {last.use[part]:.0%}" for part in busiest)
    console.print(
        f"{name}: {last.engines} engines, {last.seconds / 3600:.2f} h, efficiency "
        f"{efficiency(one, last):.3f}; busy: {words}",
        highlight=False,
    )


def _joining(console: Console, out: Path, quick: bool) -> dict[str, Any]:
    from benchmarks.scale_sim.joining import measure_joining

    out.mkdir(parents=True, exist_ok=True)
    return dict(measure_joining(out, quick))


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"simulation": _simulation, "joining": _joining}
OPTIONS = {"simulation": {"measured": "scale.json of an earlier run: nothing is measured anew"}}

if __name__ == "__main__":
    measure_parts(__doc__, PARTS, "runs/scale", OPTIONS)
