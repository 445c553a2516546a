"""The head of the cluster is lost, with all that runs there: the same command goes on elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.local_nodes import LocalCluster
from stepwiser.run.store import RunStore
from stepwiser.tasks import make_problems
from tests.chaos import given
from tests.chaos.killing import digests, finished
from tests.chaos.test_train import labelled
from tests.support.commands import finish, run, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

UNITS = 60
CPUS = 3


@contextmanager
def _cluster() -> Iterator[LocalCluster]:
    cluster = LocalCluster()
    try:
        cluster.add_node(CPUS)
        yield cluster
    finally:
        cluster.shutdown()


def _lose_the_head(stage: str, arguments: list[str], when: Callable[[], bool]) -> str:
    """Start a stage on a cluster that loses its head at some time; returns what it printed."""
    cluster = LocalCluster()
    head = cluster.add_node(CPUS)
    try:
        process = start(stage, *arguments, f"cluster.address={cluster.address}")
        wait_for(when, process)
        cluster.remove_node(head, allow_graceful=False)
        output = finish(process, timeout=300)
    finally:
        cluster.shutdown()
    assert process.returncode not in (0, None), output
    said = " ".join(output.split())  # a terminal's lines end anywhere
    assert "head at" in said and "start the same command" in said, output
    return output


def test_annotation_and_training_go_on_when_the_head_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray looks for a head a minute long before it ends a command.
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "20")
    problems = make_problems(UNITS, seed=5)
    folder = tmp_path / "annotated" / "run"
    arguments = [*given.make_run(folder, problems), "engine.count=1"]
    _lose_the_head("annotate", arguments, lambda: len(finished(folder)) >= UNITS // 4)
    kept = {unit: digests(folder, unit) for unit in finished(folder)}
    assert 0 < len(kept) < UNITS, "the head was lost half-way"
    with _cluster() as cluster:
        run("annotate", *arguments, f"cluster.address={cluster.address}")
    assert given.keys_in(folder) == [given.keys_of(n, p) for n, p in enumerate(problems)]
    assert all(digests(folder, unit) == before for unit, before in kept.items())

    trained = tmp_path / "trained"
    arguments = [*labelled(trained), "engine.count=1", "learner.workers=1", "train.steps=4"]

    def steps() -> Counter[int]:
        rows = RunStore(trained).read_curve("judge")
        return Counter(row["step"] for row in rows if row["kind"] == "train")

    _lose_the_head("train", arguments, lambda: len(steps()) >= 2)
    with _cluster() as cluster:
        run("train", *arguments, f"cluster.address={cluster.address}")
    assert sorted(steps()) == list(range(4)) and steps().total() <= 6, steps()
    assert (trained / "models" / "judge" / "model.safetensors").is_file()
