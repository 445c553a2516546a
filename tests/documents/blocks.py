"""What the documents show: fenced blocks, commands in backquotes, commands in comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.support.paths import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "configs/README.md"])
CLUSTER = sorted((ROOT / "cluster").rglob("*.yaml"))
COMMENTED = sorted([*(ROOT / "configs").rglob("*.yaml"), *CLUSTER, ROOT / "Makefile"])
"""Files whose comments name commands; `cluster/Dockerfile` is read line by line besides."""

LANGUAGES = {"sh", "bash", "console", "python", "yaml", "json", "text"}
PROGRAMS = (
    *("stepwiser", "make", "python", "python3.11", "pytest", "pip", "uv", "ruff", "mypy"),
    *("ray", "curl", "docker", "kubectl", "tests/fresh.sh", "hf"),
    *("wandb", "tensorboard", "mlflow", "trackio"),
)
"""What a command in backquotes or in a comment begins with; a fence may have any other."""
_PROGRAM = re.compile(
    rf"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:{'|'.join(map(re.escape, PROGRAMS))})(?: |$)"
)


@dataclass(frozen=True)
class Block:
    """Some lines of a file, and where its first one is."""

    file: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def fences(file: Path) -> list[Block]:
    """Blocks between lines of three backquotes.

    Raises ValueError for one that never ends, or says no language that is known here: what nobody
    knows how to read nobody checks.
    """
    found, begun = [], 0
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.startswith("```"):
            continue
        if not begun:
            begun, language = number, line[3:].strip()
            if language not in LANGUAGES:
                raise ValueError(f"{file.name}:{number}: {language!r} is none of {LANGUAGES}")
        else:
            text = "\n".join(lines[begun : number - 1]) + "\n"
            found.append(Block(file, begun + 1, language, text))
            begun = 0
    if begun:
        raise ValueError(f"{file.name}:{begun}: a block never ends")
    return found


def spans(file: Path) -> Iterator[Block]:
    """What stands in backquotes outside of blocks, one line each."""
    inside = False
    prose = []
    for line in file.read_text(encoding="utf-8").splitlines():
        inside ^= line.startswith("```")
        prose.append("" if inside or line.startswith("```") else line)
    yield from _backquoted(file, "\n".join(prose), 1)


def _backquoted(file: Path, text: str, first: int) -> Iterator[Block]:
    for match in re.finditer(r"`([^`]+)`", text):
        number = first + text.count("\n", 0, match.start())
        yield Block(file, number, "span", " ".join(match[1].replace(r"\|", "|").split()))


def is_command(text: str) -> bool:
    """Whether it begins as one; the name of a program alone is none."""
    return bool(_PROGRAM.match(text)) and " " in text


def comments(file: Path) -> Iterator[Block]:
    """Of each run of comment lines what is in backquotes, and the lines that are indented."""
    run: list[str] = []
    lines = [*file.read_text(encoding="utf-8").splitlines(), ""]
    for number, line in enumerate(lines, start=1):
        if line.startswith("#"):
            run.append(line[1:].removeprefix(" "))
            continue
        first = number - len(run)
        yield from _backquoted(file, "\n".join(run), first)
        for i, said in enumerate(run):
            if said.startswith("  ") and is_command(said.strip()):
                yield Block(file, first + i, "sh", said.strip() + "\n")
        run = []


def carried(file: Path) -> Iterator[Block]:
    """Commands that are values of a cluster's file, or lines RUN of an image's."""
    text = file.read_text(encoding="utf-8")
    if file.name == "Dockerfile":
        for match in re.finditer(r"(?m)^RUN ((?:.*\\\n)*.*\n)", text):
            yield Block(file, text.count("\n", 0, match.start()) + 1, "sh", match[1])
        return
    content = yaml.safe_load(text)
    if content.get("kind") == "RayJob":
        words = content["spec"]["entrypoint"]
        yield Block(file, _line_of(text, words), "sh", words + "\n")
    if "num_nodes" in content:  # a task of SkyPilot, whose `run` has a shell's own words besides
        yield Block(file, _line_of(text, "setup:"), "sh", content["setup"])
        for words in content["run"].splitlines():
            if words.startswith("stepwiser "):
                yield Block(file, _line_of(text, words), "sh", words + "\n")
    for key, value in content.items():
        for words in value if key.endswith("_commands") and isinstance(value, list) else ():
            yield Block(file, _line_of(text, words), "sh", words + "\n")


def _line_of(text: str, words: str) -> int:
    return text.count("\n", 0, text.index(words)) + 1


def console(block: Block) -> list[tuple[str, list[str]]]:
    """Commands of a block that shows a terminal, each with the lines that it printed."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif not found:
            raise ValueError(f"{block}: a terminal begins with a command, `$ …`")
        else:
            found[-1][1].append(line)
    return found
