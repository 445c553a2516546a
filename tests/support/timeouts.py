"""What a test waited for when its time was over: stacks, processes, and the logs of its Rays."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import io
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil

from tests.support.scratch import processes_of

LOGS, LINES = 16, 25
"""How many log files, those written last, and how much of each."""
STACKS = 24
"""Of how many processes, the busiest."""


def tell_before_the_end(folder: Path) -> None:
    """Have the signal that ends the running test write a report first, while all is still there.

    ``folder`` is that of the run; the report goes to standard error, which pytest shows with the
    failure.
    """
    end = signal.getsignal(signal.SIGALRM)
    if not callable(end):
        return  # pytest-timeout was told to use threads

    def tell_and_end(number: int, frame: FrameType | None) -> None:
        for part in report(folder):
            print(part, file=sys.stderr, flush=True)
        end(number, frame)

    signal.signal(signal.SIGALRM, tell_and_end)


def report(folder: Path) -> Iterator[str]:
    yield f"--- threads of this process\n{_threads()}"
    with contextlib.suppress(RuntimeError):  # no loop runs
        for task in asyncio.all_tasks():
            stack = io.StringIO()
            task.print_stack(file=stack)
            yield f"--- {stack.getvalue()}"
    processes = sorted(processes_of(folder), key=_cpu_seconds, reverse=True)
    yield "--- processes of the run\n" + "\n".join(_line(process) for process in processes)
    for process in processes[:STACKS]:
        yield f"--- stack of process {process.pid}\n{_stack(process.pid)}"
    logs = [path for path in folder.glob("**/session_2*/logs/*") if path.is_file()]
    logs = [path for path in logs if path.stat().st_size and path.name != "debug_state.txt"]
    for path in sorted(logs, key=lambda path: path.stat().st_mtime)[-LOGS:]:
        lines = path.read_text(errors="replace").splitlines()
        lines = [line for line in lines if "[state-dump]" not in line]
        yield "\n".join([f"--- end of {path.relative_to(folder)}", *lines[-LINES:]])


def _threads() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def _cpu_seconds(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


def _line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        command = " ".join(process.cmdline()).strip()[:100]
        return (
            f"{process.pid:>8} of {process.ppid():>8}  {process.status():9}"
            f" {_cpu_seconds(process):7.1f} s  {command}"
        )
    return f"{process.pid:>8} has ended"


def _stack(pid: int) -> str:
    """What py-spy, a part of Ray's dashboard, says of a Python process."""
    program = Path(sys.executable).with_name("py-spy")
    try:
        said = subprocess.run(
            [program, "dump", "--pid", str(pid)], capture_output=True, text=True, timeout=15
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    return said.stdout or said.stderr.partition("\n")[0]
