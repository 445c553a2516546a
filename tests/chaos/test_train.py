"""Training under fire: whoever is killed in the middle of whatever, every step is trained once.

The command, the engines and the kills are real; the labels are the embedded oracle's, so that no
annotation has to come first.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from stepwiser.data.records import JudgePrompt
from stepwiser.run.store import RunStore
from stepwiser.tasks import ArithmeticProblem, make_problems
from stepwiser.tasks.arithmetic import solution_chunks, true_step
from tests.chaos.killing import Family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 24
VICTIMS = ("learner", "engine", "collector", "evaluator", "driver")
"""One of each, in this order, each in a step of its own."""
SETTINGS = (
    f"train.steps={STEPS}",
    "train.prompts_per_step=32",
    "train.minibatch_prompts=16",
    "train.group_size=4",
    "train.checkpoint_every=1",
    "train.evaluate_every=2",
    "learner.max_failures=6",
    "discriminative.enabled=false",
)


def labelled(folder: Path) -> list[str]:
    """A run directory with judge prompts; returns the overrides that train on them.

    So many that Ray keeps them in its object store, and may lose them when an actor restarts.
    """
    rows = []
    for number, problem in enumerate(make_problems(600, seed=3)):
        split = "heldout" if number % 60 == 0 else "train"
        rows += [_prompt(problem, number, right, split) for right in (True, False)]
    table = JudgePrompt.to_table(rows)
    RunStore(folder).write_table("judge_prompts", "all", table)
    return [f"run_dir={folder}", *SETTINGS]


def _prompt(problem: ArithmeticProblem, number: int, right: bool, split: str) -> JudgePrompt:
    chunk = solution_chunks(problem)[0]
    if not right:
        step = true_step(problem, 0, problem.values[0])
        chunk = replace(step, result=step.result + 1).text
    return JudgePrompt(
        prompt_id=f"{number}-{right}",
        trajectory_id=f"{number}-{right}",
        problem_id=str(number),
        question=problem.question,
        history=[],
        chunk=chunk,
        chunk_index=0,
        label=right,
        rule="rel_effective",
        value=float(right),
        previous_value=1.0,
        trials=16,
        split=split,
    )


def _lines(folder: Path, kind: str) -> list[dict]:
    return [row for row in RunStore(folder).read_curve("judge") if row["kind"] == kind]


def _trained(folder: Path) -> int:
    """Steps that have been finished, some perhaps more than once."""
    return len({row["step"] for row in _lines(folder, "train")})


def _step_seconds(folder: Path) -> float:
    """Of the quickest step; others have waited for someone who was killed."""
    return min(row["seconds_step"] for row in _lines(folder, "train"))


def test_a_kill_of_everybody_trains_every_step_once(tmp_path: Path) -> None:
    folder, rng = tmp_path / "run", random.Random(1)
    with Family("train", *labelled(folder)) as family:
        for done, kind in enumerate(VICTIMS, 1):
            family.wait_for(lambda done=done: _trained(folder) >= done)
            # Wherever a step may stand: checkpoint, publication, sampling, update.
            time.sleep(rng.uniform(0.0, _step_seconds(folder)))
            print(f"{_trained(folder)} steps: kill {kind} ({family.kill(kind, rng)})")
        before = _lines(folder, "train")
        assert _trained(folder) < STEPS, "all steps were done by the last kill: make it longer"
        output = family.finish()
    assert "Traceback" not in output, output
    assert "constructor arguments" not in output, "Ray says that some actor could not restart"

    rows = _lines(folder, "train")
    assert sorted({row["step"] for row in rows}) == list(range(STEPS))
    assert all(row["updates"] == 2 and row["logprob_gap"] < 1e-4 for row in rows)
    # DeepSpeed's own count, which is in its checkpoints: also of steps that are done again.
    counts = [(row["step"], row["optimizer_steps"]) for row in rows]
    assert all(count == 2 * (step + 1) for step, count in counts), counts
    evaluated = {row["step"] for row in _lines(folder, "evaluation")}
    assert evaluated == set(range(1, STEPS, 2)), "every second judge was evaluated"
    for model in ("judge", "judge-last", "judge-best"):
        assert (folder / "models" / model / "README.md").is_file()
    assert not list((folder / "models").glob("*candidates*"))
    resumed = rows[len(before) :]
    assert resumed[0]["step"] >= before[-1]["step"] - 1, "another driver goes on from a checkpoint"
    # A kill costs the step that is under way and, while its checkpoint travels, the one before.
    again = Counter(row["step"] for row in rows)
    assert sum(again.values()) - STEPS <= 2 * len(VICTIMS), again
    # What was learned survives every kill. A step has 128 answers: a standard error of 0.04.
    rewards = [row["reward"] for row in rows if "reward" in row]
    assert min(rewards) > rewards[0] - 0.15, rewards
    assert sum(rewards[-4:]) / 4 > rewards[0] + 0.1, rewards
