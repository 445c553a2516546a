"""One process beside this one that answers calls, over a pipe and nothing else.

`ProcessPoolExecutor` keeps named semaphores, which stay in /dev/shm for ever where the caller is
killed together with Python's own tracker of them, as Ray ends its workers and their children.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class ProcessDied(RuntimeError):
    """The process ended before it answered."""


class SpawnedProcess:
    """Started anew, not forked: the caller may hold threads and a Ray worker's sockets."""

    def __init__(self, begin: Callable[[], object]) -> None:
        """``begin``: called there first, a function of a module or a partial of one."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, begin), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def call(self, timeout_s: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of a module returns there; from one thread at a time.

        Raises what it raises, TimeoutError when it takes longer, after which the process is of no
        use any more, and ProcessDied.
        """
        try:
            self._pipe.send((function, arguments))
            if not self._pipe.poll(timeout_s):
                raise TimeoutError(f"no answer within {timeout_s:g} s")
            result, error = self._pipe.recv()
        except (EOFError, ConnectionError) as lost:
            raise ProcessDied("the process ended before it answered") from lost
        if error is not None:
            raise error
        return result

    def kill(self) -> None:
        """End it, also where it hangs."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()


def _serve(pipe: Connection, begin: Callable[[], object]) -> None:
    _end_with_parent()
    begin()
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        answer: tuple[Any, Exception | None]
        try:
            answer = function(*arguments), None
        except Exception as error:  # the caller's
            answer = None, error
        pipe.send(answer)


def _end_with_parent() -> None:
    """A killed parent cannot end this process, which may be at work for long."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
