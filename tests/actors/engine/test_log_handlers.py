"""Buffered logs keep their files when a library configures its own, as vLLM does."""

from __future__ import annotations

import logging
import logging.config
import subprocess
import sys
from logging.handlers import MemoryHandler
from pathlib import Path

from actors.engine.log_handlers import log_targets_kept
from tests.support.paths import ROOT


def test_a_buffered_log_goes_on_into_its_file(tmp_path: Path) -> None:
    # In a process of its own: all of this one's handlers would be closed as well.
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "log")],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text().splitlines() == ["before", "after"]
    assert done.stdout.split() == ["0", "0"], "nothing is kept in the buffer"


def _log(file: str) -> None:
    logger = logging.getLogger("of.a.service")
    handler = MemoryHandler(1, target=logging.FileHandler(file))
    logger.addHandler(handler)
    logger.error("before")
    print(len(handler.buffer))
    with log_targets_kept():
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
        assert handler.target is None
    logger.error("after")
    print(len(handler.buffer))


if __name__ == "__main__":
    _log(sys.argv[1])
