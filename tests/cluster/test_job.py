"""`ray job submit` against a head node of its own with token authentication."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import ROOT

RAY = str(Path(sys.executable).with_name("ray"))

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Head:
    """A running head node and the token it wants."""

    dashboard: str
    token: str

    def submit(self, *command: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        """`ray job submit` as a person types it in the project's root; waits for the job."""
        env = _environment(self.token if token is None else token)
        job = [RAY, "job", "submit", "--address", self.dashboard, "--working-dir", "."]
        job += ["--", *command]
        return subprocess.run(
            job, cwd=ROOT, env=env, text=True, capture_output=True, timeout=240, check=False
        )


def _environment(token: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    gcs, dashboard, agent_grpc, agent_http, client, metrics = _free_ports(6)
    token = uuid.uuid4().hex
    log = tmp_path_factory.mktemp("head") / "log.txt"
    # A short path: Ray's sockets live below it and may not exceed 107 characters.
    temp = Path("/tmp") / f"sw{uuid.uuid4().hex[:8]}"
    command = [
        RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1",
        f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
        f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--dashboard-agent-listen-port={agent_http}", f"--ray-client-server-port={client}",
        f"--metrics-export-port={metrics}", "--object-store-memory=100000000",
        f"--temp-dir={temp}", "--disable-usage-stats",
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=_environment(token), stdout=out, stderr=out, start_new_session=True
        )
    try:
        _wait_for(dashboard, process, log)
        yield Head(f"http://127.0.0.1:{dashboard}", token)
    finally:
        # `ray stop` would end every Ray on the machine; this ends the group that was started here.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(temp, ignore_errors=True)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail(f"the head node did not come up:\n{log.read_text()}")


LIST = """
import os, stepwiser
files = [os.path.join(d, f) for d, _, names in os.walk(".") for f in names]
print("TOP", *sorted(os.listdir(".")))
print("BYTES", sum(os.path.getsize(f) for f in files))
print("HERE", os.path.samefile(os.path.dirname(os.path.dirname(stepwiser.__file__)), "."))
"""


def test_the_working_directory_travels_without_what_git_ignores(head: Head) -> None:
    done = head.submit("python", "-c", LIST)
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    top = set(said["TOP"].split())
    assert {"stepwiser", "actors", "pipelines", "serve", "configs", "pyproject.toml"} <= top
    assert not top & {".git", ".venv", "runs", "wandb", ".pytest_cache"}
    # Ray refuses to upload more than 500 MiB.
    assert int(said["BYTES"]) < 200 * 2**20
    assert said["HERE"] == "True"  # the uploaded packages, not the installed ones


def test_a_stage_runs_as_a_job(head: Head) -> None:
    done = head.submit("python", "-m", "pipelines.cli", "annotate", "--plan")
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


def test_a_job_that_fails_says_so(head: Head) -> None:
    done = head.submit("python", "-m", "pipelines.cli", "annotate", "annotate.rolouts=4")
    assert done.returncode != 0
    assert "annotate.rollouts" in done.stdout  # the hint of the command itself


def test_a_wrong_token_is_refused(head: Head) -> None:
    refused = head.submit("python", "-c", "print('must never run')", token="0" * 32)
    assert refused.returncode != 0
    assert "Invalid authentication token" in refused.stdout + refused.stderr
    assert "submitted successfully" not in refused.stdout
