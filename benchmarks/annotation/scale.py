"""Does annotation cost per chunk, and nothing per run? A million chunks, without a model.

    python -m benchmarks.annotation.scale --chunks 1000000   about half an hour on two cores
    python -m benchmarks.annotation.scale --quick            20,000 chunks

The real stage with its driver, labelers, engine actors, checks and files; only the engines are
stubs that answer at once (`annotation.stub_engine`). Once a second the CPU time and the memory of
every process are noted beside the chunks that the driver's log has. CPU time is what costs are
compared by: the neighbours on a machine change the wall time more than the run's length does. They
change CPU time too, by a third within minutes on a shared virtual machine, so it is divided by that
of a yardstick, a fixed piece of work done beside each note. The last line is one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from benchmarks.annotation.stub_engine import StubEngine
from benchmarks.command import CONFIG, arguments
from benchmarks.process_monitor import DRIVER, Moment, ProcessMonitor, memory_growth, peak_memory
from pipelines.monitoring.formatting import titled_table
from stepwiser.config import RunConfig, load_config
from stepwiser.run.resource_plan import engine_range
from stepwiser.run.status import read_status
from stepwiser.run.store import RunStore
from stepwiser.run.units import log_files
from stepwiser.tasks import load_base_model_dir

CHUNKS_PER_PROBLEM = 12.0
"""Of the stub's answers, a little less than there are: so many chunks will be there."""
MARKS = (10_000, 100_000, 1_000_000)
"""Chunks at which the cost of one is compared."""
SLOTS = "engine.max_num_seqs=64"
"""Little work is under way at a time, so that finished chunks tell how much has been done."""


class FinishedChunks:
    """Chunks in the units that the driver's log has, read on from where it stopped."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._read = 0
        self._chunks = 0

    def __call__(self) -> int:
        for path in log_files(self._store):
            with path.open() as file:
                file.seek(self._read)
                for line in iter(file.readline, ""):
                    if not line.endswith("\n"):
                        break
                    self._read += len(line)
                    self._chunks += json.loads(line).get("counts", {}).get("chunks", 0)
        return self._chunks


def run(config: RunConfig, console: Console) -> tuple[list[Moment], dict[str, Any]]:
    """Annotate with stub engines; what was seen meanwhile, and the stage's own counts with
    `seconds` of the stage and `stub_cpu_seconds`, the CPU time of the stub's own answers."""
    from pipelines.session.session import Session
    from pipelines.stages import annotate

    fewest, most = engine_range(config)
    with Session(config, console, build=StubEngine) as session:
        policy = session.store.model_dir("policy")
        shutil.copytree(load_base_model_dir(), policy, dirs_exist_ok=True)
        session.start(["annotate"])
        with ProcessMonitor(FinishedChunks(session.store)) as monitor:
            began = time.monotonic()
            counts = dict(annotate.run(session)["counts"])
            counts["seconds"] = time.monotonic() - began
        # The same engines again: they are kept between stages.
        stats = session.run(session.pool(str(policy), count=fewest, maximum=most).stats())
        counts["stub_cpu_seconds"] = sum(one.busy_seconds for one in stats)
    return monitor.moments, counts


def at(moments: Sequence[Moment], chunks: float) -> dict[str, float]:
    """Seconds and CPU seconds by role when so many chunks were finished, between two moments."""
    later = next((i for i, m in enumerate(moments) if m.done >= chunks), len(moments) - 1)
    after = moments[later]
    before = moments[later - 1] if later else after
    step = after.done - before.done
    share = (chunks - before.done) / step if step else 1.0

    def between(a: float, b: float) -> float:
        return a + share * (b - a)

    cpu = {name: between(before.cpu.get(name, 0.0), s) for name, s in after.cpu.items()}
    return cpu | {"wall": between(before.seconds, after.seconds), "cpu": sum(cpu.values())}


def costs(moments: Sequence[Moment], total: int) -> dict[int, dict[str, float]]:
    """Microseconds a chunk up to each mark, over the half of the chunks before it.

    By role, and `cpu` of all and `wall`; `yardsticks`: CPU time in those of the same minutes. What
    comes before half of the first mark is start-up.
    """
    found = {}
    for mark in (*(mark for mark in MARKS if mark < 0.75 * total), total):
        begin, end = at(moments, mark / 2), at(moments, mark)
        row = {name: (end[name] - begin.get(name, 0.0)) / (mark / 2) * 1e6 for name in sorted(end)}
        lengths = [m.yardstick for m in moments if mark / 2 < m.done <= mark]
        row["yardsticks"] = row["cpu"] / (mean(lengths) * 1e6) if lengths else math.nan
        found[mark] = row
    return found


def farthest_from_first(values: Sequence[float]) -> float:
    """The ratio to the first that is farthest from 1, whichever side."""
    return max((value / values[0] for value in values), key=lambda ratio: max(ratio, 1 / ratio))


def memory_ratios(moments: Sequence[Moment], total: int) -> dict[str, float]:
    """Mean memory in the last third of the chunks against that in the first third, by role.

    The first twentieth is start-up, and what comes after the last chunk counts to the last third.
    """
    first = [m for m in moments if total / 20 < m.done <= total / 3]
    last = [m for m in moments if m.done > 2 * total / 3]
    return memory_growth(first, last)


def figures(
    moments: Sequence[Moment], counts: dict[str, Any], status_seconds: float
) -> dict[str, Any]:
    """Everything that is reported."""
    total = counts["chunks"]
    by_mark = costs(moments, total)
    memory = memory_ratios(moments, total)
    begin, end = at(moments, total / 20), at(moments, total)
    return {
        "scale_memory_ratio": memory.get(DRIVER, math.nan),  # not seen in a run of seconds
        "scale_chunks_per_s": 0.95 * total / (end["wall"] - begin["wall"]),
        "scale_cost_ratio": farthest_from_first([row["yardsticks"] for row in by_mark.values()]),
        "chunks": total,
        "seconds": counts["seconds"],
        "cpu_time_ratio": farthest_from_first([row["cpu"] for row in by_mark.values()]),
        "microseconds_a_chunk": by_mark,
        "memory_ratios": memory,
        "memory_mb": peak_memory(moments),
        "stub_share": counts["stub_cpu_seconds"]
        / (moments[-1].cpu_seconds - moments[0].cpu_seconds),
        "rollouts_per_chunk": counts["rollouts"] / total,
        "requests_per_chunk": (counts["problems"] + counts["prefixes"]) / total,
        "seconds_after_last_chunk": moments[-1].seconds - end["wall"],
        "status_seconds": status_seconds,
    }


def measure(run_dir: Path, chunks: int, overrides: Sequence[str], console: Console) -> dict:
    """At least so many chunks in a new run directory."""
    problems = round(chunks / CHUNKS_PER_PROBLEM)
    config = load_config(
        CONFIG, [f"run_dir={run_dir}", f"data.limit={problems}", SLOTS, *overrides]
    )
    moments, counts = run(config, console)
    began = time.process_time()
    status = read_status(RunStore(run_dir))
    status_seconds = time.process_time() - began
    assert status.state == "done" and status.chunks == counts["chunks"]
    return figures(moments, counts, status_seconds)


def print_table(console: Console, found: dict[str, Any]) -> None:
    by_mark = found["microseconds_a_chunk"]
    columns = ("", *(f"{mark:,}" for mark in by_mark), "memory, MB", "last / first third")
    table = titled_table("microseconds a chunk up to …", *columns)
    for name in sorted(by_mark[found["chunks"]], key=lambda n: -by_mark[found["chunks"]][n]):
        cells = [f"{by_mark[mark].get(name, 0.0):,.0f}" for mark in by_mark]
        size, ratio = found["memory_mb"].get(name), found["memory_ratios"].get(name)
        cells += [f"{size:.0f}" if size else "", f"{ratio:.2f}" if ratio else ""]
        table.add_row(name, *cells)
    console.print(table)


@contextlib.contextmanager
def _folder(given: str | None) -> Iterator[Path]:
    if given:
        yield Path(given)
    else:
        with tempfile.TemporaryDirectory(prefix="annotation-scale-") as folder:
            yield Path(folder)


def main() -> None:
    parser = arguments(__doc__, "20,000 chunks", None)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("overrides", nargs="*", help="further key=value overrides")
    args = parser.parse_args()
    console = Console(width=140)
    with _folder(args.out) as folder:
        found = measure(folder, 20_000 if args.quick else args.chunks, args.overrides, console)
    print_table(console, found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
