"""A run whose keys are known beforehand: given trajectories, every chunk of which is valued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stepwiser.run import merge
from stepwiser.run.store import RunStore
from stepwiser.run.units import finished_units
from stepwiser.tasks import ArithmeticProblem, load_base_model_dir
from stepwiser.tasks.arithmetic import solution_chunks, true_step

SETTINGS = (
    # The packaged model stands for the chunk-tuned policy: what it writes does not matter here.
    "annotate.responses=4",
    "annotate.rollouts=8",
    "annotate.stop_below=0",
    "annotate.max_tokens=100",
)


def make_run(folder: Path, problems: Sequence[ArithmeticProblem], per_unit: int = 1) -> list[str]:
    """A run directory with a policy; returns the overrides that annotate a right and a wrong
    solution of each problem there, named after its position."""
    shutil.copytree(load_base_model_dir(), folder / "models" / "policy")
    source = folder.parent / "given.jsonl"
    with source.open("w") as file:
        for number, problem in enumerate(problems):
            for name, steps in (("right", solution_chunks(problem)), ("wrong", _slip(problem))):
                row = {"id": f"{number}-{name}", "problem": problem.question, "steps": steps}
                row |= {"answer": problem.answer, "final_answer_correct": name == "right"}
                file.write(json.dumps(row) + "\n")
    return [
        f"run_dir={folder}",
        f"annotate.source={source}",
        f"annotate.problems_per_unit={per_unit}",
        *SETTINGS,
    ]


def keys_of(number: int, problem: ArithmeticProblem) -> set[tuple[str, int]]:
    """Of the rows that the solutions of a problem at that position are to have: each trajectory
    (index -1) and each chunk."""
    solutions = {"right": solution_chunks(problem), "wrong": _slip(problem)}
    return {
        (f"{number}-{name}", index)
        for name, steps in solutions.items()
        for index in range(-1, len(steps))
    }


def keys_in(folder: Path | str) -> list[set[tuple[str, int]]]:
    """Those that the finished units of a run have, by position; each unit has one problem."""
    store = RunStore(folder)
    found = [merge.keys_of(store, unit) for unit in finished_units(store)]
    return sorted(found, key=lambda keys: min(int(name.partition("-")[0]) for name, _ in keys))


def _slip(problem: ArithmeticProblem) -> list[str]:
    """A solution whose second step is one too high, and what follows from that."""
    steps, left = [], problem.values[0]
    for index in range(len(problem.operations)):
        step = true_step(problem, index, left)
        if index == 1:
            step = replace(step, result=step.result + 1)
        steps.append(step.text)
        left = step.result
    return steps
