"""A training whose number of learners changes while it runs, on nodes that come and go."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train

from actors.learner.train import train_grpo
from cluster.local_nodes import local_cluster
from tests.support.scripted_collector import scripted_batch
from tests.support.tiny import make_tiny_model
from tests.support.train_options import train_options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 6
WAIT_S = 300.0
SOON = {
    "_system_config": {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 2000,
        "health_check_failure_threshold": 3,
    }
}
"""A head that looks after its nodes so often that it knows of a loss within seconds."""


@ray.remote(num_cpus=0, max_concurrency=16)
class Gate:
    """Serves batches that depend on the step alone, as far as it has been told to."""

    def __init__(self) -> None:
        self._open = 0
        self._asked: Counter[int] = Counter()
        self._changed = threading.Condition()

    def next_batch(self, step: int) -> Any:
        with self._changed:
            self._asked[step] += 1
            self._changed.wait_for(lambda: step < self._open)
        return scripted_batch(step)

    def publish(self, version: int, refs: list[Any], timeout_s: float) -> dict[str, float]:
        return {}

    def open(self, steps: int) -> None:
        with self._changed:
            self._open = steps
            self._changed.notify_all()

    def asked(self, step: int) -> int:
        """How many ranks have asked for a step, over all starts."""
        return self._asked[step]


def _wait_for_ranks(gate: Any, step: int, ranks: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while (asked := ray.get(gate.asked.remote(step))) < ranks:
        assert time.monotonic() < deadline, f"step {step}: {asked} ranks, not {ranks}"
        time.sleep(0.2)


def test_learners_come_and_go_with_their_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray Train looks for room once a minute.
    quick = partial(ray.train.ScalingConfig, elastic_resize_monitor_interval_s=2.0)
    monkeypatch.setattr(ray.train, "ScalingConfig", quick)
    # It waits a minute for the node that has gone before it goes on without, and the head waits
    # half as long before it calls a silent node dead.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    environment = {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    with local_cluster(head=SOON, runtime_env={"env_vars": environment}) as cluster:
        cluster.add_node(1)
        gate = Gate.remote()
        failures: list[BaseException] = []

        def come_and_go() -> None:
            try:
                ray.get(gate.open.remote(2))
                _wait_for_ranks(gate, 2, 1)  # alone
                second = cluster.add_node(1)
                _wait_for_ranks(gate, 2, 3)  # again, by two
                ray.get(gate.open.remote(4))
                _wait_for_ranks(gate, 4, 2)
                cluster.remove_node(second, allow_graceful=False)
                _wait_for_ranks(gate, 4, 3)  # again, alone
            except BaseException as error:
                failures.append(error)
            finally:
                ray.get(gate.open.remote(STEPS))

        story = threading.Thread(target=come_and_go)
        story.start()
        model = str(make_tiny_model(tmp_path / "model"))
        elastic = {"min_workers": 1, "max_failures": 3}
        result = train_grpo(train_options(tmp_path, model, "judge", elastic, steps=STEPS), gate)
        story.join()
        assert not failures, failures
    assert result.steps == STEPS
    rows = {row["step"]: row for row in result.metrics}
    assert sorted(rows) == list(range(STEPS))
    # Optimizer and counters went along from one number of ranks to the other and back.
    assert [rows[step]["optimizer_steps"] for step in rows] == [2 * (step + 1) for step in rows]
    assert (Path(result.model_dir) / "model.safetensors").is_file()
