"""Does the memory of any of our processes grow with the steps of a training? Many small ones.

The stage `train` as it is, with few and short samples a step, so that hundreds of steps take
minutes; the learning rate is so low that groups stay mixed. Once a second the resident memory of
every process is noted beside the steps that the curve has. What counts are the processes that hold
something of ours; Ray's own (raylet, GCS, agents) are listed apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.process_monitor import DRIVER, Moment, ProcessMonitor, memory_growth, peak_memory
from benchmarks.training.trl import PROMPTS, oracle_prompts, prepare
from pipelines.stages.runner import run_stages
from stepwiser.run.store import RunStore

OURS = (DRIVER, "ExperienceCollector", "RolloutGenerator", "RayTrainWorker", "TrainController")
SMALL = (
    "train.prompts_per_step=8",
    "train.minibatch_prompts=4",
    "train.group_size=4",
    "train.max_response_tokens=24",
    "train.learning_rate=1e-7",
    # So few groups may all agree with themselves.
    "train.max_sampling_rounds=20",
)
FULL, QUICK = 500, 40
SETTLED = {FULL: 50, QUICK: 10}
"""Steps until everything has been loaded, compiled and cached."""


def measure_memory(out: Path, quick: bool) -> dict[str, Any]:
    """``memory_growth``, the largest of ``growth`` by role among ours; ``growth_ray`` of the others
    and ``memory_mb``, the most that each had."""
    steps = QUICK if quick else FULL
    config = prepare(
        out / "memory",
        oracle_prompts(PROMPTS, seed=2),
        [f"train.steps={steps}", f"train.checkpoint_every={steps // 10}", *SMALL],
    )
    curve = RunStore(config.run_dir).curve
    with ProcessMonitor(lines_of(curve)) as monitor:
        run_stages(config, ("train",))
    found = growth(monitor.moments, steps, SETTLED[steps])
    ours = {name: found[name] for name in OURS}
    return {
        "memory_growth": max(ours.values()),
        "growth": ours,
        "growth_ray": {name: ratio for name, ratio in found.items() if name not in OURS},
        "memory_mb": {
            role: mb for role, mb in peak_memory(monitor.moments).items() if role in found
        },
    }


def lines_of(file: Path) -> Callable[[], int]:
    """Counts the lines of a file that grows."""
    offset = count = 0

    def lines() -> int:
        nonlocal offset, count
        if file.exists():
            with file.open("rb") as opened:
                opened.seek(offset)
                text = opened.read()
            offset += len(text)
            count += text.count(b"\n")
        return count

    return lines


def growth(moments: Sequence[Moment], steps: int, settled: int) -> Mapping[str, float]:
    """Mean memory by role in the last fifth of the steps, over that in the fifth after `settled`.

    Roles that were not there in both are left out. What is seen after the last step is the end of
    the training, when models are written, and does not count.
    """
    fifth = steps / 5
    first = [m for m in moments if settled <= m.done < settled + fifth]
    last = [m for m in moments if steps - fifth <= m.done < steps]
    return memory_growth(first, last)
