"""Runs of pytest itself: what they say of a test that hangs, and what they leave."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.scratch import processes_of

pytestmark = pytest.mark.slow

HANGS = """
import asyncio, pytest, ray, subprocess, time

@ray.remote
def never_returns():
    print("the worker is at work", flush=True)
    time.sleep(1000)

async def waits_for_it():
    await never_returns.remote()

@pytest.mark.timeout(5, func_only=True)
def test_hangs(ray_local):
    asyncio.run(waits_for_it())

def test_leaves_a_process():
    subprocess.Popen(["sleep", "1000"])
"""

KILLED = """
import time
from tests import conftest
from cluster.local_nodes import local_cluster
with local_cluster(1) as cluster:
    cluster.add_node(1)
    print(conftest.SCRATCH, flush=True)
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def killed() -> Path:
    """Folder of a run whose process was killed. The rest of it takes a minute to end, in which
    other tests may run."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": os.environ["PYTEST_DEBUG_TEMPROOT"]},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert len(processes_of(folder)) > 5
        process.kill()
    return folder


def test_a_timeout_tells_what_was_waited_for_and_leftovers_are_errors(
    tmp_path: Path, killed: Path
) -> None:
    (tmp_path / "test_of_a_run.py").write_text(HANGS)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT),
            *("-p", "tests.conftest", "-p", "no:cacheprovider", tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = run.stdout
    assert "1 failed, 1 passed, 1 error" in said, said + run.stderr
    assert "Timeout (>5.0s) from pytest-timeout" in said
    for words in (
        r"--- threads of this process\n(.*\n)+.*in test_hangs",
        r"--- Stack for .*\n.*in waits_for_it",
        r"ray::never_returns",
        r"--- end of ray/session_.*/logs/worker-.*\.out\n(.*\n)*the worker is at work",
        r"--- end of ray/session_.*/logs/raylet\.out",
        r"the tests have left:\nE +process \d+ of \d+, \d+ s old, \w+: sleep 1000",
    ):
        assert re.search(words, said), f"{words}\n{said}"


def test_a_cluster_ends_with_the_process_that_started_it(killed: Path) -> None:
    # Most end at once; agents when they have tried for a minute to tell a cluster that is gone.
    deadline = time.monotonic() + 120.0
    while left := processes_of(killed):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    shutil.rmtree(killed)  # of a process that had no time for it
