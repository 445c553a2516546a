"""Starting the real command at a size that tests can afford."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.preload import FORKED_COMMAND

SMALL = (
    "data.limit=64",
    "segment.problems=96",
    "segment.sft.steps=60",
    "segment.evaluation_problems=16",
    "annotate.problems_per_unit=4",
    "annotate.rollouts=8",
    "annotate.responses=8",
    "annotate.repeat_share=0.3",
    "train.steps=4",
    "train.prompts_per_step=16",
    "train.minibatch_prompts=8",
    "train.group_size=4",
    "train.checkpoint_every=2",
    "train.evaluate_every=2",
    "discriminative.sft.epochs=2",
    "evaluate.wrong=12",
    "evaluate.right=12",
    "evaluate.votes=2",
    "evaluate.calibration_trajectories=8",
    "evaluate.faithfulness=6",
    "evaluate.beyond=12",
    "solve.problems=8",
    "solve.plain_samples=4",
    "solve.methods=[chunk_reset,best_of_n,weighted_vote,beam_search,early_stop]",
    "solve.searches=2",
    "solve.beams=2",
    "select.problems=16",
    "select.responses=4",
    "finetune.sft.steps=4",
    "finetune.evaluation_problems=16",
    "finetune.evaluation_samples=2",
)


def command(stage: str, *overrides: str, module: str = "pipelines.cli") -> list[str]:
    return [sys.executable, "-m", module, stage, *SMALL, *overrides]


def command_environment(*, forked: bool = False) -> dict[str, str]:
    """Variables of a command under test: nothing of a Ray or a W&B of this process.

    ``forked``: as `start` says.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    if forked:
        environment[FORKED_COMMAND] = "1"
    environment.pop("RAY_ADDRESS", None)
    # Of a run in this process: its W&B service would outlive a command that is killed, and hold on
    # to the run that the next start continues.
    environment.pop("WANDB_SERVICE", None)
    return environment


def start(
    stage: str, *overrides: str, module: str = "pipelines.cli", forked: bool = False
) -> subprocess.Popen[str]:
    """Start a stage in a process group of its own.

    ``forked``: with the imports of `tests.support.preload`; for what is only waited for.
    """
    return subprocess.Popen(
        command(stage, *overrides, module=module),
        cwd=ROOT,
        env=command_environment(forked=forked),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 900) -> str:
    """Wait; returns what the command printed."""
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def run(stage: str, *overrides: str, code: int = 0, timeout: float = 900) -> str:
    """What the command printed, which must end with this code.

    Where Ray had no chance to start within its 30 seconds, once more, as the command says itself.
    """
    for last in (False, True):
        process = start(stage, *overrides, forked=True)
        output = finish(process, timeout)
        if last or "Ray did not start" not in output:
            break
    assert process.returncode == code, f"exit code {process.returncode}\n{output[-6000:]}"
    return output


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[str], timeout: float = 300
) -> None:
    """Wait until something is true while the command runs."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, f"ended early:\n{(process.stdout or sys.stdin).read()}"
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)


def parquet_files(run_dir: Path, table: str) -> dict[str, int]:
    """Names and modification times of the files of a table."""
    return {p.name: p.stat().st_mtime_ns for p in (run_dir / table).glob("*.parquet")}
