"""Says what is the matter where the head of a cluster that others run does not answer.

Ray itself looks for it for a minute (`RAY_gcs_rpc_server_reconnect_timeout_s`) and then ends this
process, with words about its own parts only.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import ray
from rich.console import Console

from stepwiser.run.periodic import repeating

PERIOD_S = 5.0
MISSED = 2
"""Looks in a row that find nobody before it is said: one may be a busy moment."""


class HeadWatch:
    """Told of each look, says when the head is away and when it is back."""

    def __init__(self, address: str, console: Console) -> None:
        self._address = address
        self._console = console
        self._missed = 0

    def look(self) -> None:
        there = answers(self._address)
        if there and self._missed >= MISSED:
            self._console.print(f"the cluster's head at {self._address} answers again")
        self._missed = 0 if there else self._missed + 1
        if self._missed == MISSED:
            self._console.print(
                f"the cluster's head at {self._address} does not answer; Ray waits for it, a "
                "minute by default, and then ends this command. What is finished is kept: start "
                "the same command when the cluster is up again, or with cluster.address of another"
            )


def answers(address: str, timeout_s: float = PERIOD_S) -> bool:
    """Whether anybody takes connections at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def head_monitored(own: bool, console: Console) -> Iterator[None]:
    """While the block runs, where this process is connected to a Ray that is not its own."""
    if own or not ray.is_initialized():
        yield
        return
    watch = HeadWatch(ray.get_runtime_context().gcs_address, console)
    with repeating(watch.look, PERIOD_S, "head"):
        yield
