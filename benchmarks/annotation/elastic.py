"""What a node that joins while annotation goes on is worth, and what one that leaves costs.

The real stage on a cluster of several local nodes: one engine's node is there from the start, a
second one joins, works, and announces its end as a preempted machine does. Tokens/s are taken in a
window of each of the three phases, from the engines' own counters. On two cores the second engine
gets what the first, the labelers and Ray leave, so the CPU seconds behind a token are reported too:
where they stay the same, it is cores that are missing.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import ray
from ray._private.node import Node

from actors.pool.pool import EnginePool
from benchmarks.command import CONFIG
from cluster.local_nodes import LocalCluster, local_cluster
from pipelines.session.session import Session
from pipelines.stages import annotate
from stepwiser.config import load_config
from stepwiser.run.units import finished_units, read_plan

SETTLE_S = 10.0
"""From a change to the window that measures what it did."""
WAIT_S = 300.0
NOTICE_S = 20.0
"""What a preempted node has to end its work in."""


def announce_end(cluster: LocalCluster, node: Node) -> None:
    """What Ray does on a preempted machine."""
    from ray.core.generated import autoscaler_pb2

    accepted, why = ray._raylet.GcsClient(address=cluster.address).drain_node(
        node.node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "the benchmark takes it",
        int((time.time() + NOTICE_S) * 1000),
    )
    if not accepted:
        raise RuntimeError(f"Ray refuses to drain the node: {why}")


class Annotation(threading.Thread):
    """The stage, in a thread of its own: Ray starts nodes from the main thread alone."""

    def __init__(self, session: Session) -> None:
        super().__init__(daemon=True)
        self._session = session
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            annotate.run(self._session)
        except Exception as error:  # raised in the main thread, by `check`
            self.failure = error

    def check(self) -> None:
        """Raises what ended the stage, or RuntimeError where it is over too soon."""
        if self.failure is not None:
            raise self.failure
        if not self.is_alive():
            raise RuntimeError("all is annotated before the phases are over: take more problems")


class Phases:
    """Adds a node, takes it away, and measures in between, while a thread annotates."""

    def __init__(
        self, cluster: LocalCluster, pool: EnginePool, annotation: Annotation, window_s: float
    ) -> None:
        self._cluster, self._pool, self._annotation = cluster, pool, annotation
        self._window_s = window_s

    def measure(self) -> list[dict[str, float]]:
        """The windows with one engine, with two, and with one again."""
        self._until(lambda: self._tokens() > 0, "the first tokens")
        windows = [self._window()]
        node = self._cluster.add_node(1)
        self._until(lambda: self._pool.serving == 2, "the second engine")
        windows.append(self._window())
        announce_end(self._cluster, node)
        self._until(lambda: self._pool.serving == 1, "the second engine's end")
        self._cluster.remove_node(node, allow_graceful=True)
        windows.append(self._window())
        self._annotation.check()
        return windows

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            self._annotation.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {WAIT_S:g} s")
            time.sleep(0.2)

    def _tokens(self) -> int:
        return sum(one.generated_tokens for one in self._pool.counters().values())

    def _window(self) -> dict[str, float]:
        time.sleep(SETTLE_S)
        began, tokens, cpu = time.monotonic(), self._tokens(), _engine_cpu()
        time.sleep(self._window_s)
        made = self._tokens() - tokens
        seconds = time.monotonic() - began
        return {"tokens_per_s": made / seconds, "cpu_us": (_engine_cpu() - cpu) / made * 1e6}


def _engine_cpu() -> float:
    """CPU seconds of all engines that are up."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):
            if process.cmdline()[0].startswith("ray::RolloutGenerator"):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def measure_elastic(
    overrides: Sequence[str], problems: int, window_s: float
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Annotate through all three phases; ``problems`` must last that long.

    Returns ``elastic_rise`` (tokens/s of two engines over those of one), ``elastic_fall`` (of one
    again over those of one before), ``elastic_cpu_ratio`` (CPU time of a token with two over that
    with one) and ``elastic_units_missing``; and the windows.
    """
    with (
        # Ray puts its sockets 64 characters below this folder, and their paths may have 107.
        tempfile.TemporaryDirectory("", "sw-", "/tmp", ignore_cleanup_errors=True) as folder,
        local_cluster(head={"temp_dir": folder}) as cluster,
    ):
        cluster.add_node(1)
        config = load_config(
            CONFIG,
            [
                f"cluster.address={cluster.address}",
                f"data.limit={problems}",
                "annotate.min_engines=1",
                "annotate.max_engines=2",
                *overrides,
            ],
        )
        with Session(config) as session:
            session.start(["annotate"])
            pool = session.pool(session.policy_dir(), count=1, maximum=2)
            annotation = Annotation(session)
            annotation.start()
            windows = Phases(cluster, pool, annotation, window_s).measure()
            annotation.join()
            if annotation.failure is not None:
                raise annotation.failure
            plan = read_plan(session.store)
            assert plan is not None
            missing = len(set(plan["units"]) - finished_units(session.store))
    one, two, again = windows
    return {
        "elastic_rise": two["tokens_per_s"] / one["tokens_per_s"],
        "elastic_fall": again["tokens_per_s"] / one["tokens_per_s"],
        "elastic_cpu_ratio": two["cpu_us"] / one["cpu_us"],
        "elastic_units_missing": missing,
    }, windows
