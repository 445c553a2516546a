"""Which files go along with a job: the program, the scenario, and what was asked for."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stepwiser.errors import UserError

LIMIT = 500 * 2**20
"""Bytes that Ray takes at most (its `max_grpc_message_size`). It counts them compressed."""
PACKAGES = ("actors", "benchmarks", "cluster", "configs", "pipelines", "serve", "stepwiser")
"""What travels of a program that is installed and no checkout; `pyproject.toml` has the same."""
LEFT_OUT = frozenset(
    {".git", ".venv", "venv", "runs", "data", "models", "wandb", "mlruns", "bundle", "__pycache__"}
)
"""Folders of the checkout that stay, unless git has their files: data, runs and environments."""
RULES = frozenset({".gitignore", ".rayignore"})
"""Ray would leave out what these name, and all that is copied was chosen."""
SCENARIO = "submitted"
"""Folder of a scenario that is not one of the program's own files."""
SHOWN = 5
"""Of the largest files, in a refusal."""


@dataclass(frozen=True)
class Cargo:
    """Files by their place in the job's working directory, with `/` between folders."""

    files: Mapping[str, Path]
    config: str | None = None
    """Where the scenario is there; None where none was given."""
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(self.sizes.values())

    def has(self, place: str) -> bool:
        """Whether a file or a folder of that relative path goes along."""
        return place in self.files or any(name.startswith(f"{place}/") for name in self.files)


def gather(root: Path, here: Path, config: Path | None, extra: Sequence[Path] = ()) -> Cargo:
    """What goes along.

    Args:
        root: folder that holds the program's packages.
        here: folder in which the command was given.
        config: the scenario.
        extra: files and folders below ``here``, which keep their relative paths.

    Raises UserError for an extra that is not there or not below ``here``, for one in the place of a
    file of the program, and for more bytes than Ray takes.
    """
    files = {name: root / name for name in program_files(root)}
    for path in extra:
        for name, found in _below(here, path).items():
            if name in files and files[name].resolve() != found.resolve():
                raise UserError(f"--with {path}: the program has a file {name} too; rename yours")
            files[name] = found
    place = None
    if config is not None:
        place = _name_below(root.resolve(), config.resolve())
        if place is None or place not in files:
            place = f"{SCENARIO}/{config.name}"
            files[place] = config
    sizes = {name: path.stat().st_size for name, path in files.items()}
    cargo = Cargo(files, place, sizes)
    if cargo.size > LIMIT:
        raise UserError(_too_large(cargo))
    return cargo


def program_files(root: Path) -> list[str]:
    """Relative paths of the program: what git has or would take, else its packages."""
    tracked = _git(root, "--cached")
    if tracked is None:
        found = [
            path
            for package in PACKAGES
            for path in sorted((root / package).rglob("*"))
            if not LEFT_OUT & set(path.relative_to(root / package).parts)
        ]
        names = [path.relative_to(root).as_posix() for path in found]
    else:
        # A module that nobody has told git of yet is missed over there all the same.
        new = _git(root, "--others", "--exclude-standard") or []
        names = tracked + [name for name in new if not LEFT_OUT & set(name.split("/"))]
    return [
        name for name in names if name.rpartition("/")[2] not in RULES and (root / name).is_file()
    ]


def put_together(cargo: Cargo, folder: Path) -> None:
    """Copy the files into a folder, in place of what an earlier job had there."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, path in cargo.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def _git(root: Path, *which: str) -> list[str] | None:
    """Paths that git lists; None where the folder is no checkout, or there is no git."""
    if not (root / ".git").exists():
        return None
    try:
        listed = subprocess.run(
            ["git", "-C", str(root), "ls-files", "-z", *which],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return [name for name in listed.stdout.split("\0") if name]


def _below(here: Path, path: Path) -> dict[str, Path]:
    full = here / path
    if not full.exists():
        raise UserError(f"--with {path} does not exist in {here}")
    place = _name_below(here.resolve(), full.resolve())
    if place is None:
        raise UserError(
            f"--with {path} does not lie below {here}: what travels keeps its relative path, so "
            "give the command in a folder that holds it"
        )
    if full.is_file():
        return {place: full}
    return {
        one.relative_to(here.resolve()).as_posix(): one
        for one in sorted(full.resolve().rglob("*"))
        if one.is_file() and "__pycache__" not in one.parts
    }


def _name_below(folder: Path, path: Path) -> str | None:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else None


def _too_large(cargo: Cargo) -> str:
    largest = sorted(cargo.sizes, key=lambda name: -cargo.sizes[name])[:SHOWN]
    named = ", ".join(f"{name} ({mebibytes(cargo.sizes[name])})" for name in largest)
    return (
        f"{mebibytes(cargo.size)} would travel with the job, and Ray takes {mebibytes(LIMIT)}: "
        f"{named}; move them out of the project or name them in its .gitignore, and put data "
        "where every node sees it"
    )


def mebibytes(size: float) -> str:
    """`8.3 MiB`."""
    return f"{size / 2**20:.1f} MiB"
