"""`ray job submit` and `stepwiser submit` against a head of its own with token authentication."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from ray._private.utils import write_ray_address

from cluster.local_nodes import local_cluster
from cluster.ports import reserved_ports
from stepwiser.run.store import RunStore
from stepwiser.tasks import make_problems, solution
from tests.support.commands import command_environment
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
        # A busy machine takes longer than a minute for the head's dashboard.
        patch.setattr("ray._private.ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S", 300)
        with local_cluster(2, {"include_dashboard": True, "dashboard_port": port}) as cluster:
            # As `ray start` leaves it: by this file a job finds the Ray that it is a job of.
            write_ray_address(cluster.address)
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


BLOCKED = """
import sys
class NotHere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {engines!r}:
            raise ModuleNotFoundError(f"this machine has no {{name}}", name=name)
sys.meta_path.insert(0, NotHere())
from pipelines.cli import main
main()
"""
LAPTOP = BLOCKED.format(engines={"torch", "vllm", "deepspeed", "transformers", "datasets", "peft"})
"""The command where nothing of the extra `node` that is large is installed."""
GREEDY = (
    # One answer to each question, so that two runs are nearly the same whatever their engines
    # decoded together.
    *("annotate.temperature=1e-6", "annotate.rollouts=1", "annotate.repeat_share=0"),
    *("annotate.stop_below=0", "annotate.problems_per_unit=1", "annotate.source=given.jsonl"),
    *("engine.count=1", "label.heldout_share=0.2", "tracker=none"),
)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of no checkout: a scenario, and solutions of which every other has a wrong step."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(ROOT / "configs/embedded.yaml", folder / "mine.yaml")
    rows = []
    for i, problem in enumerate(make_problems(24, seed=5)):
        steps = solution(problem).splitlines()
        if i % 2:
            steps[i % 4] = steps[i % 4].partition("=")[0] + "=7"
        row = {"id": f"g{i}", "problem": problem.question, "steps": steps}
        rows.append(json.dumps(row | {"answer": str(problem.values[-1])}))
    (folder / "given.jsonl").write_text("\n".join(rows))
    for run in ("here", "there"):
        shutil.copytree(ROOT / "stepwiser/tasks/base_model", tmp_path / run / "models/policy")
    return folder


def _laptop(head: Head, here: Path, *words: str, code: int = 0) -> str:
    """What a command of a machine without engines printed."""
    env = {**_environment(head.token), "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(here)}
    env |= {"COLUMNS": "200", "SECRET": "never to be printed"}
    done = subprocess.run(
        [sys.executable, "-c", LAPTOP, *words, "--address", head.dashboard],
        cwd=here, env=env, text=True, capture_output=True, timeout=900, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert head.token not in output and "never to be printed" not in output
    return output


def _rows(run: Path, table: str, stage: str) -> list[dict]:
    rows = RunStore(run).read_table(table, stage).to_pylist()
    return sorted(rows, key=lambda row: json.dumps(row, default=str))


@pytest.mark.timeout(3000)
def test_what_is_submitted_gives_the_numbers_of_a_local_run(
    head: Head, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = elsewhere.parent / "here", elsewhere.parent / "there"
    words = ["quickstart", "--stages", "annotate,label", "-c", "mine.yaml", *GREEDY]
    submit = ["submit", *words, f"run_dir={there}"]
    assert "add --with given.jsonl" in _laptop(head, elsewhere, *submit, code=2)
    submit += ["--with", "given.jsonl", "--env", "OMP_NUM_THREADS=1", "--env", "SECRET"]
    name = f"there-quickstart-{sha256(str(there).encode()).hexdigest()[:6]}"
    said = _laptop(head, elsewhere, *submit)
    assert f"{name}-1 is submitted" in said and "ray job submit" in said
    assert "works on" in _laptop(head, elsewhere, *submit, code=2), "not twice at once"

    # Told to end while it is at work, it ends as after Ctrl-C and keeps what is finished.
    deadline = time.monotonic() + 1200
    while not list(there.glob("units/*.json")):
        assert time.monotonic() < deadline, _laptop(head, elsewhere, "logs", name)
        time.sleep(0.2)
    ended = _laptop(head, elsewhere, "stop", name)
    kept = {path.name: path.stat().st_mtime_ns for path in there.glob("units/*.json")}
    assert f"{name}-1: STOPPED" in ended, ended
    assert "interrupted; finished work is kept" in _laptop(head, elsewhere, "logs", name)
    said = _laptop(head, elsewhere, *submit, "--follow")
    assert f"{name}-2 is submitted" in said and f"{name}-2: SUCCEEDED" in said
    after = {path.name: path.stat().st_mtime_ns for path in there.glob("units/*.json")}
    assert kept.items() <= after.items() and len(after) == 24
    listed = _laptop(head, elsewhere, "jobs", "--run", str(there))
    assert f"{name}-1" in listed and f"{name}-2" in listed and "annotate, label" in listed

    monkeypatch.chdir(elsewhere)
    local = [sys.executable, "-m", "pipelines.cli", *words, f"run_dir={here}"]
    done = subprocess.run(
        local, env=command_environment() | {"PYTHONPATH": str(ROOT)}, text=True,
        capture_output=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = _rows(there, "trajectories", "annotate")
    assert len(rows) == 24 and rows == _rows(here, "trajectories", "annotate")
    values = [{(row["trajectory_id"], row["chunk_index"]): row for row in
               _rows(run, "values", "annotate")} for run in (here, there)]  # fmt: skip
    assert values[0].keys() == values[1].keys()
    assert sum(row["successes"] for row in values[0].values()) > 0
    # vLLM samples at a temperature of 0.01 at least, at which what is nearly a tie is still drawn.
    same = sum(values[0][key] == values[1][key] for key in values[0])
    assert same >= 0.9 * len(values[0]), f"{same} of {len(values[0])} rows are the same"
    assert _rows(there, "judge_prompts", "label")


def test_commands_of_a_laptop_say_what_is_wrong(head: Head, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        return _laptop(head, tmp_path, *words, code=2)

    assert "knows no job nothing" in said("logs", "nothing")
    assert "knows no job nothing" in said("stop", "nothing")
    assert "in the job's own copy" in said("submit", "annotate", "run_dir=runs/mine")
    assert "annotate.rollouts" in said("submit", "annotate", "annotate.rolouts=4")
    stranger = Head(head.dashboard, "0" * 32)
    assert "refuses this machine's token" in _laptop(stranger, tmp_path, "jobs", code=2)
    nowhere = Head("http://127.0.0.1:1", head.token)
    assert "nobody answers" in _laptop(nowhere, tmp_path, "jobs", code=2)
