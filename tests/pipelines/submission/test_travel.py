"""What goes along with a job, and what is refused before a cluster is asked."""

import subprocess
import tomllib
from pathlib import Path

import pytest

from pipelines.submission import travel
from pipelines.submission.travel import PACKAGES, gather, program_files, put_together
from stepwiser.errors import UserError
from tests.support.paths import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "program"
    for name, text in {
        "stepwiser/data/rows.py": "rows",
        "configs/mine.yaml": "name: mine",
        ".gitignore": "runs/\n*.pyc\n",
        "runs/old/values.parquet": "x" * 1000,
        "stepwiser/rows.pyc": "x",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", root], check=True)
    subprocess.run(["git", "-C", root, "add", "."], check=True)
    for name in ("data/train.jsonl", ".venv/lib/a.py", "stepwiser/new.py", "wandb/a"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("new")
    return root


def test_what_git_has_travels_with_what_it_would_take(checkout: Path) -> None:
    # A package called data is no data; a module that nobody has told git of is missed over there.
    assert set(program_files(checkout)) == {
        "stepwiser/data/rows.py",
        "configs/mine.yaml",
        "stepwiser/new.py",
    }
    (checkout / "configs/mine.yaml").unlink()
    assert "configs/mine.yaml" not in program_files(checkout), "deleted, and git does not know"


def test_an_installed_program_has_its_packages_alone(tmp_path: Path) -> None:
    for name in ("stepwiser/a.py", "stepwiser/__pycache__/a.pyc", "torch/huge.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert program_files(tmp_path) == ["stepwiser/a.py"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(PACKAGES) == set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])


def test_this_program_is_small_and_whole() -> None:
    cargo = gather(ROOT, ROOT, ROOT / "configs/embedded.yaml")
    assert {"pipelines/cli/app.py", "stepwiser/tasks/base_model/model.safetensors"} <= set(
        cargo.files
    )
    assert cargo.config == "configs/embedded.yaml"
    assert cargo.size < 20 * 2**20
    assert not [name for name in cargo.files if name.startswith((".venv", ".git/", "runs/"))]


def test_a_scenario_from_elsewhere_and_files_beside_it_travel(
    checkout: Path, tmp_path: Path
) -> None:
    here = tmp_path / "elsewhere"
    (here / "more/__pycache__").mkdir(parents=True)
    for name in ("mine.yaml", "train.jsonl", "more/checks.py", "more/__pycache__/checks.pyc"):
        (here / name).write_text(name)
    cargo = gather(checkout, here, here / "mine.yaml", [Path("train.jsonl"), Path("more")])
    assert cargo.config == "submitted/mine.yaml"
    assert cargo.has("train.jsonl") and cargo.has("more") and not cargo.has("mor")
    folder = tmp_path / "copy"
    (folder / "of an earlier job").mkdir(parents=True)
    put_together(cargo, folder)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == set(cargo.files)
    assert "more/checks.py" in found and "more/__pycache__/checks.pyc" not in found
    assert cargo.size == sum((folder / name).stat().st_size for name in found)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("nowhere.jsonl", "does not exist"),
        ("../program/configs", "does not lie below"),
        ("stepwiser/data/rows.py", "the program has a file stepwiser/data/rows.py too"),
    ],
)
def test_what_cannot_travel_is_refused(
    checkout: Path, tmp_path: Path, extra: str, words: str
) -> None:
    here = tmp_path / "elsewhere"
    (here / "stepwiser/data").mkdir(parents=True)
    (here / "stepwiser/data/rows.py").write_text("others")
    with pytest.raises(UserError, match=words):
        gather(checkout, here, None, [Path(extra)])


def test_more_than_ray_takes_is_refused_with_what_is_large(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    assert travel.LIMIT <= GCS_STORAGE_MAX_SIZE
    (checkout / "stepwiser/weights.bin").write_bytes(bytes(3 * 2**20))
    monkeypatch.setattr(travel, "LIMIT", 2 * 2**20)
    with pytest.raises(UserError, match=r"3.0 MiB would travel.* stepwiser/weights.bin \(3.0 MiB"):
        gather(checkout, checkout, None)
