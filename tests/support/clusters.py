"""Ray clusters of several nodes, all of them on this machine."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster


def add_node(cluster: Cluster, cpus: int, **options: Any) -> Node:
    """A node whose agents have fixed ports: else it ends itself when they do not tell theirs
    within 15 seconds, which they cannot on a machine where much else runs."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("", 0))
        ports = [one.getsockname()[1] for one in sockets]
    options |= {"metrics_agent_port": ports[0], "runtime_env_agent_port": ports[1]}
    for _ in range(2):
        # Where a node is not up after 30 seconds, which nothing can change, Ray gives it up.
        with contextlib.suppress(Exception):
            return cluster.add_node(num_cpus=cpus, **options)
    return cluster.add_node(num_cpus=cpus, **options)


@contextlib.contextmanager
def local_cluster(**options: Any) -> Iterator[Cluster]:
    """A head without CPUs, to which the driver is connected; ``options`` go to `ray.init`.

    Any thread may add nodes.
    """
    # Ray puts its sockets some 70 characters below this folder, and their paths may have 107.
    folder = tempfile.mkdtemp(prefix="sw-", dir="/tmp")
    # Ray's own handlers for the end of the program could be set by the main thread alone.
    cluster = Cluster(shutdown_at_exit=False)
    add_node(cluster, 0, include_dashboard=False, temp_dir=folder)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", **options)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
