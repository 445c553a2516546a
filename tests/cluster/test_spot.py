"""Learners keep off nodes that can be taken back at any moment; engines go where they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group_table

from actors.engine.engine import EngineOptions
from actors.learner.worker_group import WorkerGroup, run_worker_group
from actors.pool.pool import EnginePool
from cluster.local_nodes import local_cluster
from pipelines.session.plan_table import staying_resources
from stepwiser.run.resource_plan import MARKET_LABEL, SPOT, STAYING
from tests.support.scripted_engine import SLOTS, ScriptedEngine

pytestmark = pytest.mark.slow


def _where(config: dict[str, Any]) -> None:
    from ray.train import get_context

    rank = get_context().get_world_rank()
    Path(config["folder"], str(rank)).write_text(ray.get_runtime_context().get_node_id())


def _learners(folder: Path, spot: bool) -> set[str]:
    """Nodes that two ranks run on."""
    folder.mkdir()
    group = WorkerGroup("judge", str(folder / "runs"), num_workers=2, spot=spot, max_failures=0)
    run_worker_group(_where, {"folder": str(folder)}, group, str(folder / "metrics"), (), None)
    return {(folder / str(rank)).read_text() for rank in range(2)}


def test_placement_reads_the_label(tmp_path: Path) -> None:
    with local_cluster() as cluster:
        # The larger one, which Ray chooses for whatever does not say where it wants to be.
        spot = cluster.add_node(8, labels={MARKET_LABEL: SPOT}).node_id
        assert staying_resources() == {"CPU": 0.0, "GPU": 0.0}
        staying = cluster.add_node(2).node_id
        assert staying_resources() == {"CPU": 2.0, "GPU": 0.0}
        assert _learners(tmp_path / "anywhere", spot=True) == {spot}
        assert _learners(tmp_path / "kept", spot=False) == {staying}
        log = tmp_path / "answers"
        log.touch()
        pool = EnginePool(
            EngineOptions(model=str(log), max_num_seqs=SLOTS),
            count=2,
            labels=STAYING,
            build=ScriptedEngine,
            start_timeout_s=120.0,
        )
        groups = [row for row in placement_group_table().values() if row["state"] == "CREATED"]
        assert [set(row["bundles_to_node_id"].values()) for row in groups] == [{staying}] * 2
        pool.shutdown()
