"""Annotation under fire: whatever is killed at whatever moment, each row is there once.

The command, the engines and the kills are real. Trajectories are given, so that the keys of all
rows are known beforehand.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from stepwiser.data.records import ChunkValue, Trajectory
from stepwiser.run.status import read_status
from stepwiser.run.store import RunStore
from stepwiser.run.units import log_files, read_log, read_summary, read_unit
from stepwiser.tasks import make_problems
from tests.chaos import given
from tests.chaos.killing import Family, digests, finished, kill_at_random

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

UNITS = 120
KILLS = Counter(labeler=7, engine=5, driver=3, registry=3, worker=2)
SEED = int(os.environ.get("CHAOS_SEED", "1"))


def _check_rows(folder: Path, rollouts: int) -> None:
    """Every key once, in one unit; units agree with their own counts, and with the tables."""
    store = RunStore(folder)
    trajectories = Trajectory.from_table(store.read_table("trajectories", "annotate"))
    values = ChunkValue.from_table(store.read_table("values", "annotate"))
    assert max(Counter(t.trajectory_id for t in trajectories).values()) == 1
    assert max(Counter((v.trajectory_id, v.chunk_index) for v in values).values()) == 1
    units = finished(folder)
    assert store.units("trajectories") == store.units("values") == units
    for unit in units:
        counts = read_summary(store, unit)["counts"]
        rows, by_trajectory = read_unit(store, unit)
        assert counts["problems"] == len({t.problem_id for t in rows}) == 1
        assert counts["trajectories"] == len(rows)
        assert counts["chunks"] == sum(map(len, by_trajectory.values()))
        assert by_trajectory.keys() == {t.trajectory_id for t in rows}
        for row in rows:
            chunks = by_trajectory[row.trajectory_id]
            assert [v.chunk_index for v in chunks] == list(range(len(row.chunks)))
            assert {v.trials for v in chunks if not v.is_outcome} == {rollouts}


def test_twenty_kills_leave_each_row_once(tmp_path: Path) -> None:
    problems = make_problems(UNITS, seed=5)
    folder = tmp_path / "run"
    arguments = [*given.make_run(folder, problems), "annotate.rollouts=4"]
    with Family("annotate", *arguments) as family:
        seen = kill_at_random(family, folder, UNITS, KILLS, SEED)
        output = family.finish()
    assert "Traceback" not in output, output
    assert "units are already done" in output, "the last driver went on"
    assert sum(KILLS.values()) == 20

    assert given.keys_in(folder) == [given.keys_of(n, p) for n, p in enumerate(problems)]
    _check_rows(folder, rollouts=4)
    changed = [unit for unit, before in seen.items() if digests(folder, unit) != before]
    assert not changed, "what was finished before a kill stays as it was"
    assert not list(folder.rglob("*.tmp"))
    assert not (folder / "rejects").exists()
    # No driver saw a unit finish that an earlier one had seen.
    (log,) = log_files(RunStore(folder))
    logged = Counter(event["unit"] for event in read_log(log) if event["event"] == "unit")
    assert max(logged.values()) == 1 and logged.keys() <= seen.keys() | finished(folder)
    status = read_status(RunStore(folder))
    assert (status.state, status.units, status.problems) == ("done", UNITS, UNITS)
    assert len(status.engines) == 2 and all(e.tokens_per_s > 0 for e in status.engines)
    with Family("annotate", *arguments) as family:
        assert "every unit is already done" in family.finish()
