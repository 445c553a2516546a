"""Kills by Ray's own memory monitor: named, counted, and in the end enough."""

import io
import time
from pathlib import Path

import pytest
import ray
from rich.console import Console

from cluster.local_nodes import local_cluster
from pipelines.monitoring.memory_kills import KillWatch, interrupt, killed_actor, named
from stepwiser.errors import UserError
from stepwiser.run.memory.kills import KIND, MAX_KILLS, RAY
from stepwiser.run.metrics_file import MetricsTail


@ray.remote(max_restarts=-1, max_task_retries=-1)
class RolloutGenerator:
    """Called as the real one is, so that it is named as that."""

    def wait(self) -> None:
        time.sleep(60.0)


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch):
    """A Ray for which every machine is too small: once a second it kills what there is."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "1000")
    with local_cluster(2):
        yield


def test_what_is_killed_again_and_again_is_named_and_ends_the_run(
    crowded: None, tmp_path: Path
) -> None:
    console = Console(file=io.StringIO(), width=400)
    curve = tmp_path / "metrics.jsonl"
    actor = RolloutGenerator.remote()
    watch = KillWatch(console, curve, "annotate")
    says = pytest.raises(UserError, match=r"engine \d ×.*lower engine.kv_cache_mb")
    with says, named(watch), watch:
        ray.get(actor.wait.remote(), timeout=100)
    kills = [kill for kill in watch.kills if kill.process == "engine"]
    assert len(kills) >= MAX_KILLS and {kill.by for kill in kills} == {RAY}
    assert all(kill.size for kill in kills)
    rows = MetricsTail(str(curve), (KIND,)).read()
    assert len(rows) == len(watch.kills) and rows[0]["stage"] == "annotate"
    words = console.file.getvalue()  # type: ignore[attr-defined]
    assert "for the 3rd time" in words and "was killed by Ray's memory monitor" in words


def test_a_ctrl_c_stays_a_ctrl_c_and_a_failure_what_it_is(tmp_path: Path) -> None:
    watch = KillWatch(Console(file=io.StringIO()), tmp_path / "metrics.jsonl", "train")
    with pytest.raises(KeyboardInterrupt), named(watch):
        interrupt()
        time.sleep(5)
    with pytest.raises(ValueError, match="as it was"), named(watch):
        raise ValueError("as it was")


def test_ray_says_what_it_killed() -> None:
    detail = (
        "Selected to kill: (Actor(96): job ID=01, task name=Other.run, required resources={}, "
        "pid=68, actual memory used=0.04GB, worker ID=8e)\n(Actor(97): job ID=01, "
        "task name=RolloutGenerator.__init__, required resources={}, pid=682, actual memory "
        "used=5.8GB, worker ID=8f)"
    )
    assert killed_actor(detail, 682) == "RolloutGenerator"
    assert killed_actor(detail, 68) == "Other"
    assert killed_actor(detail, 6) == "worker"
