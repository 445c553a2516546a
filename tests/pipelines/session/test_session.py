"""The end of a session: whatever hangs or fails, nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray

from pipelines.session import session as sessions
from pipelines.session.engine_options import engine_options
from pipelines.session.session import Session
from stepwiser.config import load_config
from tests.support.commands import command_environment
from tests.support.paths import ROOT
from tests.support.scripted_engine import ScriptedEngine


def test_engines_that_do_not_answer_hold_nothing_up(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "COUNT_S", 2.0)
    config = load_config(
        ROOT / "configs" / "embedded.yaml", [f"run_dir={tmp_path}", "engine.count=1"]
    )
    closed = []
    processes = []
    with (
        pytest.raises(TimeoutError),
        Session(config, build=ScriptedEngine) as session,
    ):
        monkeypatch.setattr(session.checker, "close", lambda: closed.append(True))
        for slot in ("policy", "judge"):
            pool = session.pool("embedded", slot=slot)
            processes.append(psutil.Process(ray.get(pool.actors[0].ready.remote())))
        os.kill(processes[0].pid, signal.SIGSTOP)
    assert closed, "what comes after the engines is closed too"
    deadline = time.monotonic() + 30
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        assert time.monotonic() < deadline, processes
        time.sleep(0.1)


AFTERWARDS = """
import os, signal, sys, time
from pipelines.session.session import Session
from stepwiser.config import load_config

signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
config = load_config("configs/embedded.yaml", [f"run_dir={sys.argv[1]}"])
with Session(config) as session:
    session.start(["label"])
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_program_has_its_own_end_again_when_ray_has_gone(tmp_path: Path) -> None:
    """Ray leaves SIGTERM to the system, and what the program had started would go on."""
    done = subprocess.run(
        [sys.executable, "-c", AFTERWARDS, str(tmp_path)],
        cwd=ROOT,
        env=command_environment(),
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (1, ["told to end"]), done.stderr


def test_the_engines_of_a_learner_with_adapters_have_room_for_what_is_under_way() -> None:
    given = ["learner.lora.rank=12", "train.staleness=2"]
    config = load_config(ROOT / "configs" / "embedded.yaml", given)
    options = engine_options(config, "embedded", adapters=True)
    assert (options.adapter_rank, options.adapter_versions) == (12, 3)
    assert engine_options(config, "embedded").adapter_rank == 0
