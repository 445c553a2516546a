"""One part of the drill, in its own process.

    python -m benchmarks.gpu_drill.part NAME DRILL.json

Figures go into parts/NAME.jsonl as they are known, so that what was measured before a part is ended
is kept.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.gpu_drill.figures import Record, recorder
from benchmarks.gpu_drill.settings import Drill


def _engine(drill: Drill, record: Record) -> None:
    from benchmarks.gpu_drill.engine import measure_engine

    measure_engine(drill, record)


def _weight_sync(drill: Drill, record: Record) -> None:
    from benchmarks.gpu_drill.weight_sync import measure_weight_sync

    measure_weight_sync(drill, record)


def _learner(drill: Drill, record: Record) -> None:
    from benchmarks.gpu_drill.learner import measure_learner

    measure_learner(drill, record)


def _training(drill: Drill, record: Record) -> None:
    from benchmarks.gpu_drill.training import measure_training

    measure_training(drill, record)


def _serve(drill: Drill, record: Record) -> None:
    from benchmarks.gpu_drill.service import measure_serve

    measure_serve(drill, record)


def _faults(drill: Drill, record: Record) -> None:
    from benchmarks.gpu_drill.faults import measure_faults

    measure_faults(drill, record)


def _evaluation(drill: Drill, record: Record) -> None:
    from benchmarks.gpu_drill.training import measure_evaluation

    measure_evaluation(drill, record)


PARTS: Mapping[str, Callable[[Drill, Record], None]] = {
    "engine": _engine,
    "weight_sync": _weight_sync,
    "learner": _learner,
    "rl": _training,
    "serve": _serve,
    "faults": _faults,
    "evaluation": _evaluation,
}
"""In order of worth."""


def main() -> None:
    name, file = sys.argv[1:]
    drill = Drill.load(file)
    shutil.rmtree(drill.run_dir(name), ignore_errors=True)  # of a start that was cut off
    PARTS[name](drill, recorder(Path(drill.out), name))


if __name__ == "__main__":
    main()
