"""The rules of the house, read from the source: layers, sizes, nothing of one machine."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("stepwiser", "actors", "serve", "cluster", "pipelines", "benchmarks")
ENGINES = {"ray", "vllm", "deepspeed"}
MAX_LINES = 400
RELEASED = ROOT / "serve" / "page" / "static" / "katex"
"""As others have released it: no room of ours."""
# Folders so common that their names in a file say nothing about the machine it was written on.
COMMON_FOLDERS = {
    "/", "/app", "/code", "/data", "/home", "/mnt", "/opt", "/src", "/srv", "/tmp", "/usr", "/var",
    "/workspace",
}  # fmt: skip


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> dict[str, int]:
    """Top-level packages a file imports, at any depth in the code, with the line of each."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            found.setdefault(name.partition(".")[0], node.lineno)
    return found


def test_imports_point_one_way() -> None:
    """Packages and rooms in the order of pyproject.toml, and no circle anywhere."""
    lint = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run(
        [lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr


def test_no_import_hides_in_a_string() -> None:
    """Modules found by name escape the order above: only stages are, within their own room."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in PACKAGES
        for path in sources(package)
        for node in ast.walk(ast.parse(path.read_text(), str(path)))
        if isinstance(node, ast.Attribute | ast.Name)
        and getattr(node, "attr", getattr(node, "id", "")) in {"import_module", "__import__"}
        and path != ROOT / "pipelines" / "stages" / "runner.py"
    ]
    assert not wrong, f"imports by name: {', '.join(wrong)}"


def test_folders_are_rooms() -> None:
    """A newcomer takes in a folder at a glance."""
    crowded = {
        str(folder.relative_to(ROOT)): count
        for package in (*PACKAGES, "tests", "configs", "docs", "requirements")
        for folder in [ROOT / package, *(ROOT / package).rglob("*/")]
        if folder.name != "__pycache__"
        and RELEASED not in folder.parents
        and (count := len({p.name for p in folder.iterdir()} - {"__init__.py", "__pycache__"})) > 14
    }
    assert not crowded, f"more than 14 entries, each wants rooms of its own: {crowded}"


def test_rooms_say_what_they_hold() -> None:
    silent = [
        str(init.relative_to(ROOT))
        for package in PACKAGES
        for init in (ROOT / package).rglob("__init__.py")
        if len((ast.get_docstring(ast.parse(init.read_text())) or "").split()) < 20
    ]
    assert not silent, f"no word about what lives there: {', '.join(silent)}"


def test_method_imports_no_engine() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources("stepwiser")
        for name, line in imports(path).items()
        if name in ENGINES
    ]
    assert not wrong, "\n".join(wrong)


def test_method_loads_no_engine() -> None:
    """What the source does not show: an engine pulled in by another library."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sources("stepwiser")
        if path.name != "__main__.py"
    ]
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert not ENGINES & set(json.loads(run.stdout.splitlines()[-1]))


def test_every_import_is_declared() -> None:
    """An import that only another package's dependencies satisfy breaks when those change."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        found = (re.match(r"[\w-]+", requirement)[0] for requirement in requirements)  # type: ignore[index]
        return {name.lower().replace("-", "_") for name in found}

    known = names(project["dependencies"]) | {"vllm", "yaml"} | set(PACKAGES)
    known |= names(project["optional-dependencies"]["node"])
    known |= sys.stdlib_module_names
    # A benchmark compares with what developers have beside; a tracker has an extra of its own, and
    # so has a kernel.
    beside = {
        "actors": names(project["optional-dependencies"]["flash-attn"]),
        "benchmarks": names(project["optional-dependencies"]["dev"]),
        "pipelines": {"mlflow", "trackio"} & set(project["optional-dependencies"]),
    }
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for package in PACKAGES
        for path in sources(package)
        for name, line in imports(path).items()
        if name not in known | beside.get(package, set())
    ]
    assert not wrong, "not in pyproject.toml:\n" + "\n".join(wrong)


def test_files_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)} has {lines} lines"
        for package in PACKAGES
        for path in sources(package)
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    ]
    assert not long, f"over {MAX_LINES} lines, each wants a split: {', '.join(long)}"


def test_tests_have_names_of_their_own() -> None:
    # pytest knows a file of a folder that is no package by its name alone.
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if not (path.parent / "__init__.py").exists():
            found.setdefault(path.name, []).append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in found.items() if len(paths) > 1}
    assert not twice, f"one of each wants another name: {twice}"


def test_nothing_names_this_machine() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
    )
    if listing.returncode != 0:
        pytest.skip(f"not a git checkout: {listing.stderr.decode().strip()}")
    folders = {str(ROOT), str(ROOT.parent), str(Path.home())} - COMMON_FOLDERS
    names = b"|".join(re.escape(folder.encode()) for folder in folders)
    # After a character of a path it is only the middle of another one.
    needle = re.compile(rb"(?<![\w.$}~-])(?:%s)/" % names)
    wrong = [
        f"{name}: {match.group().decode()}"
        for name in listing.stdout.decode().split("\0")
        if name and (ROOT / name).is_file() and (match := needle.search((ROOT / name).read_bytes()))
    ]
    assert not wrong, "paths of this machine:\n" + "\n".join(wrong)


def test_pins_are_plain() -> None:
    """Every pin is name==version: no address, no path, no host."""
    lines = (ROOT / "requirements" / "cpu-constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 100
    assert not [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][\w.+]*", pin)]
