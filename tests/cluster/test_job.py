"""`ray job submit` against a head node of its own with token authentication."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.local_nodes import local_cluster
from cluster.ports import reserved_ports
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
    return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with (
        pytest.MonkeyPatch.context() as patch,
        reserved_ports(1) as (port,),
    ):
        # As with the environment activated: a job's `python` is found on the head's path.
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        with local_cluster(2, {"include_dashboard": True, "dashboard_port": port}) as cluster:
            yield Head(cluster.dashboard, os.environ["RAY_AUTH_TOKEN"])


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
