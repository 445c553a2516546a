"""Watches for processes that are ended for want of memory, and ends a run in which it goes on.

Ray's monitor ends what grew last when a machine is almost full, and starts it anew: without a word
a run goes round in circles. Every worker's end is in the table of Ray's head, from any node; of the
kernel's kills only this machine's are known, by the counter in /proc/vmstat.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import ray
from rich.console import Console

from stepwiser.errors import UserError
from stepwiser.run.memory.kills import KERNEL, KIND, NAMES, RAY, KillCount, MemoryKill
from stepwiser.run.metrics_file import append_metrics
from stepwiser.run.periodic import repeating

LOOK_S = 1.0


class KillWatch:
    """Looks once a second from entering to leaving; tells each kill once.

    ``end`` is called once, when one thing was killed too often.
    """

    def __init__(
        self,
        console: Console,
        curve: str | Path,
        stage: str,
        end: Callable[[], None] | None = None,
    ) -> None:
        self.kills: list[MemoryKill] = []
        self._console, self._curve, self._stage = console, curve, stage
        self._end = end or interrupt
        self._count = KillCount()
        self._names: dict[tuple[str, int], str] = {}
        self._sizes: dict[int, int] = {}
        self._seen: set[bytes] = set()
        self._kernel = kernel_kills()
        self._since = time.time()
        self._warned = False
        self._ended = False
        self._exits = contextlib.ExitStack()

    @property
    def enough(self) -> str | None:
        """Why the run was ended; None where it was not."""
        return self._count.account if self._ended else None

    @property
    def account(self) -> str | None:
        """What was killed since entering, with a remedy; None where nothing was."""
        return self._count.account

    def __enter__(self) -> Self:
        self._look()
        self._exits.enter_context(repeating(self._look, LOOK_S, "memory-kills"))
        return self

    def __exit__(self, *error: Any) -> None:
        self._exits.close()
        self._look()  # what has ended the block is of the last second

    def _look(self) -> None:
        if not ray.is_initialized():
            return
        try:
            self._learn_names()
            for kill in self._new_kills():
                self._tell(kill)
        except Exception as error:
            # What is only watched must not end what is worked at, whatever fails.
            if not self._warned:
                self._console.print(
                    f"kills for want of memory are not watched: {error}", style="yellow"
                )
            self._warned = True

    def _learn_names(self) -> None:
        """Which process is what, and how large, while it lives."""
        here = ray.get_runtime_context().get_node_id()
        # Not public, but all there is without Ray's dashboard.
        for actor in ray._private.state.state.actor_table(None).values():
            node, pid = actor["Address"]["NodeID"], actor["Pid"]
            # One that is started anew has the process that ended, until there is another.
            self._names[node, pid] = actor["ActorClassName"].rpartition(".")[2]
            if node == here and actor["State"] == "ALIVE":
                with contextlib.suppress(psutil.Error):
                    self._sizes[pid] = psutil.Process(pid).memory_info().rss

    def _new_kills(self) -> list[MemoryKill]:
        kernel, found = kernel_kills(), []
        by_kernel = kernel > self._kernel
        self._kernel = kernel
        here = ray.get_runtime_context().get_node_id()
        for worker in dead_workers():
            identity = worker.worker_address.worker_id
            if identity in self._seen:
                continue
            self._seen.add(identity)
            node, pid = worker.worker_address.node_id.hex(), worker.pid
            if worker.end_time_ms / 1000 < self._since:
                continue
            if worker.exit_type == _exit_type("NODE_OUT_OF_MEMORY"):
                by = RAY
            elif by_kernel and node == here and worker.exit_type == _exit_type("SYSTEM_ERROR"):
                by = KERNEL
            else:
                continue
            name = self._names.get((node, pid)) or killed_actor(worker.exit_detail, pid)
            # Ray before 2.60 does not note it.
            size = getattr(worker, "memory_used_bytes_at_death", 0) or self._sizes.get(pid)
            address = worker.worker_address.ip_address
            found.append(MemoryKill(NAMES.get(name, name), pid, size, by, address))
        return found

    def _tell(self, kill: MemoryKill) -> None:
        self.kills.append(kill)
        words = self._count.add(kill, time.monotonic())
        self._console.print(words, style="yellow", markup=False, highlight=False, soft_wrap=True)
        append_metrics(str(self._curve), KIND, self._stage, kill.row(self._stage))
        if self._count.enough and not self._ended:
            self._ended = True
            self._end()


@contextlib.contextmanager
def named(watch: KillWatch) -> Iterator[None]:
    """Raise what ends the block as what it comes of, where processes of it were killed.

    Raises UserError: its cause is the machine, and what to change is known.
    """
    try:
        yield
    except KeyboardInterrupt:
        if watch.enough is None:
            raise
        raise UserError(watch.enough) from None
    except Exception as error:
        if watch.account is None or isinstance(error, UserError):
            raise
        first = str(error).partition("\n")[0]
        raise UserError(f"{watch.account} (it ended with: {first})") from error


def interrupt() -> None:
    """As Ctrl-C does: every stage cleans up after it. From any thread."""
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)


def dead_workers() -> list[Any]:
    """Rows of the worker table of Ray's head, of processes that have ended."""
    from ray.core.generated import gcs_pb2

    accessor = ray._private.state.state._connect_and_get_accessor()
    rows = (gcs_pb2.WorkerTableData.FromString(row) for row in accessor.get_worker_table())
    return [row for row in rows if not row.is_alive]


def killed_actor(detail: str, pid: int) -> str:
    """The class of the actor that was killed, as Ray's account of the kill has it."""
    found = re.search(rf"task name=(\w+)[^)]*\bpid={pid}\b", detail)
    return found[1] if found else "worker"


def _exit_type(name: str) -> int:
    from ray.core.generated import common_pb2

    return int(common_pb2.WorkerExitType.Value(name))


def kernel_kills() -> int:
    """Processes of this machine that the kernel has ended for want of memory; 0 where it does not
    say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
