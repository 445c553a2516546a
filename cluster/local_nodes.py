"""A Ray of one node or of several, all of them on this machine: for tests and benchmarks.

`ray.cluster_utils.Cluster` would do, but it writes and deletes the file in which a user's own
`ray.init(address="auto")` looks for a cluster, fails where that file has no folder, and leaves the
processes of a node that did not start.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import ray
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.services import find_gcs_addresses
from ray.experimental.internal_kv import _internal_kv_reset

from cluster.ports import reserved_ports

END_S = 10.0
"""What the processes of a node have to end by themselves."""


class _Node(Node):
    """A node that leaves no process where it does not start."""

    def __init__(self, params: RayParams, head: bool) -> None:
        try:
            # Ray's own handlers for the end of the program could be set by the main thread alone.
            # The "reaper" has the kernel end the processes with the thread that started them.
            super().__init__(params, head=head, shutdown_at_exit=False, spawn_reaper=True)
        except BaseException:
            self.end(graceful=False)
            raise

    def end(self, graceful: bool) -> None:
        """End the node's processes and those that they have started; as a power cut, or not."""
        family = []
        for _, process in self.live_processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                family += psutil.Process(process.pid).children(recursive=True)
        self.kill_all_processes(check_alive=False, allow_graceful=graceful, wait=True)
        # Agents and workers end when they find their raylet gone.
        _, left = psutil.wait_procs(family, timeout=END_S if graceful else 0.0)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=END_S)


class LocalCluster:
    """Nodes on this machine; the first one is the head. Any thread may add and remove others."""

    def __init__(self) -> None:
        # The kernel takes a node's processes away with the thread that started them, so that is one
        # which lives as long as the cluster: they end even where this process is killed.
        self._thread = ThreadPoolExecutor(1, "cluster")
        self._ports = contextlib.ExitStack()
        self._nodes: list[_Node] = []

    @property
    def address(self) -> str:
        return self._nodes[0].gcs_address

    @property
    def dashboard(self) -> str:
        """URL; for a head that was added with ``include_dashboard``."""
        return f"http://{self._nodes[0].webui_url}"

    def add_node(self, cpus: int, **options: Any) -> Node:
        """Start a node and wait until the cluster knows it; ``options`` go to `RayParams`."""
        return self._thread.submit(self._add, cpus, options).result()

    def _add(self, cpus: int, options: dict[str, Any]) -> _Node:
        head = not self._nodes
        # Agents that are not told all of their ports have 15 seconds to tell them, or the node ends
        # itself; and defaults are those that a user's own cluster wants.
        agents = self._ports.enter_context(reserved_ports(4))
        defaults: dict[str, Any] = {
            "num_cpus": cpus,
            "object_store_memory": 150 * 2**20,
            "metrics_agent_port": agents[0],
            "runtime_env_agent_port": agents[1],
            "dashboard_agent_listen_port": agents[2],
            "metrics_export_port": agents[3],
            "dashboard_port": None,
            "include_dashboard": False,
            # Logs stay in their files, and nobody but `add_node` adds nodes.
            "include_log_monitor": False,
            "no_monitor": True,
        }
        if not head:
            defaults |= {"gcs_address": self.address, "num_gpus": 0}
        node = _again_if_slow(lambda: _Node(RayParams(**(defaults | options)), head))
        self._nodes.append(node)
        return node

    def remove_node(self, node: Node, allow_graceful: bool = True) -> None:
        self._thread.submit(self._remove, node, allow_graceful).result()

    def _remove(self, node: _Node, graceful: bool) -> None:
        node.end(graceful)
        self._nodes.remove(node)

    def shutdown(self) -> None:
        """End every node, also one whose start nobody waited for."""
        self._thread.submit(self._remove_all).result()
        self._thread.shutdown()
        self._ports.close()

    def _remove_all(self) -> None:
        with contextlib.ExitStack() as ends:
            for node in self._nodes.copy():  # the head comes last
                ends.callback(self._remove, node, True)


def _again_if_slow(start: Callable[[], _Node]) -> _Node:
    try:
        return start()
    except Exception as error:
        # A bare Exception, of a node that is not up after 30 seconds, which nothing can change.
        if "timed out during startup" not in str(error):
            raise
    return start()


@contextlib.contextmanager
def local_cluster(
    cpus: int = 0, head: dict[str, Any] | None = None, **options: Any
) -> Iterator[LocalCluster]:
    """A head with so many CPUs, to which this process is connected; nodes may be added.

    ``head`` goes to `RayParams` and ``options`` go to `ray.init`.
    """
    assert not ray.is_initialized(), "an earlier test left its Ray running: it lacks ray.shutdown()"
    cluster = LocalCluster()
    try:
        cluster.add_node(cpus, **(head or {}))
        told_to_end = signal.getsignal(signal.SIGTERM)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", **options)
        # Ray's own handler would fail the test that runs, and the next test would go on.
        signal.signal(signal.SIGTERM, told_to_end)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        # Ray remembers both for the whole process.
        _internal_kv_reset()
        find_gcs_addresses.cache_clear()
