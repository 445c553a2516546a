"""Blocks of shell read by bash itself, which starts no program: it notes what it would start.

So variables, arrays, loops and here-documents mean what they mean to a person who pastes them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NOTE = """#!/bin/bash
# Note the command that this stands in for: its words, its standard input and PYTHONPATH.
note="$NOTES/$EPOCHREALTIME"
printf '%s\\0' "${AS:-$0}" "$@" > "$note.words"
printf '%s' "${PYTHONPATH-}" > "$note.path"
/bin/cat > "$note.input"
"""
PRELUDE = """
command_not_found_handle() { AS="$1" "$NOTER" "${@:2}"; }
ulimit() { :; }
set -e
"""
REAL = ("cat", "grep")
"""Programs that only read and write text: blocks need what they print."""
ENVIRONMENT = ("pytest", "python", "stepwiser", "uv", "pip", "ruff", "lint-imports", "mypy")


@dataclass(frozen=True)
class Call:
    """A command as its program would get it."""

    where: str
    program: str
    """Without the folder of an environment."""
    arguments: tuple[str, ...]
    input: str = ""
    python_path: str = ""

    def __str__(self) -> str:
        words = " ".join((self.program, *self.arguments))
        return f"{self.where}: {words if len(words) < 120 else words[:117] + '...'}"


class Shell:
    """A folder that blocks are read in, with a home, a /tmp and an environment of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._notes = place / ".notes"
        for name in (".notes", ".programs", ".venv/bin", "home/.local/bin", "tmp", "tests"):
            (place / name).mkdir(parents=True, exist_ok=True)
        self._noter = place / ".programs" / "note"
        self._noter.write_text(NOTE)
        self._noter.chmod(0o755)
        for name in REAL:
            (place / ".programs" / name).symlink_to(shutil.which(name) or name)
        (place / ".venv/bin/activate").touch()
        for name in ENVIRONMENT:
            self._stand_in(place / ".venv/bin" / name)
        self._stand_in(place / "home/.local/bin/uv")
        self._stand_in(place / "tests/fresh.sh")
        for other in ("vllm-0.23/bin/pytest", "carry/bin/pip", "stepwiser/bin/pip"):
            self._stand_in(place / "tmp" / other)
        self._stand_in(place / "tmp/stepwiser/bin/python")

    def _stand_in(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(self._noter)

    def read(self, where: str, text: str) -> list[Call]:
        """What a block would start.

        Raises AssertionError where bash cannot read it, or it ends with an error of its own.
        """
        for old in self._notes.iterdir():
            old.unlink()
        text = text.replace("/tmp/", f"{self.place}/tmp/")
        done = subprocess.run(
            ["/bin/bash", "-c", PRELUDE + text],
            cwd=self.place,
            env={
                "PATH": str(self.place / ".programs"),
                "HOME": str(self.place / "home"),
                "NOTES": str(self._notes),
                "NOTER": str(self._noter),
                "LC_ALL": os.environ.get("LC_ALL", "C.UTF-8"),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{where}: bash ends with {done.returncode}: {done.stderr}"
        assert not done.stderr, f"{where}: bash says {done.stderr}"
        return [self._call(where, note) for note in sorted(self._notes.glob("*.words"))]

    def _call(self, where: str, note: Path) -> Call:
        program, *arguments = note.read_text().split("\0")[:-1]
        folder, _, name = program.rpartition("/")
        return Call(
            where,
            program=name if folder.endswith("bin") else program.removeprefix(f"{self.place}/"),
            arguments=tuple(arguments),
            input=note.with_suffix(".input").read_text(),
            python_path=note.with_suffix(".path").read_text(),
        )
