"""TCP ports for servers that want to be told theirs."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Ports that the kernel gives to nobody else while the context lasts.

    A port that was looked up and let go may be another process's a moment later. These stay bound,
    but nobody listens on them; Linux lets a server bind them as well where it sets SO_REUSEADDR, as
    asyncio, gRPC and Serve do.
    """
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            holder = stack.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("", 0))
            ports.append(holder.getsockname()[1])
        yield ports
