"""A run directory as annotation leaves it, written by hand: two units, values known by heart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stepwiser.config import RunConfig
from stepwiser.config.annotation import Shard
from stepwiser.data.records import ChunkValue, Trajectory
from stepwiser.run import units
from stepwiser.run.store import RunStore
from stepwiser.run.units import UnitLog, write_plan

UNITS = ("aaaa", "bbbb")

COUNTS = {
    "problems": 2, "responses": 8, "right_responses": 5, "response_tokens": 400,
    "mixed_problems": 1, "all_right": 1, "trajectories": 1, "chunks": 3, "prefixes": 2,
    "rollouts": 8, "rollout_tokens": 160,
}  # fmt: skip


def trajectory(
    name: str = "t1", chunks: Sequence[str] = ("one\n", "two\n\n", "three")
) -> Trajectory:
    """Of a problem that 2 of 4 responses solve."""
    return Trajectory(
        trajectory_id=name,
        problem_id=f"p-{name}",
        question=f"What of {name}?",
        answer="7",
        response_ids=list(range(len(chunks))),
        chunks=list(chunks),
        chunk_ends=list(range(1, len(chunks) + 1)),
        final_answer="8",
        correct=False,
        problem_successes=2,
        problem_trials=4,
    )


def values(of: Trajectory, successes: Sequence[int] = (3, 1, 0)) -> list[ChunkValue]:
    """Four rollouts a prefix; the last chunk is the outcome where all chunks are valued."""
    rows = []
    for i, count in enumerate(successes):
        outcome = i == len(of.chunks) - 1
        trials = 1 if outcome else 4
        rows.append(
            ChunkValue(
                trajectory_id=of.trajectory_id,
                problem_id=of.problem_id,
                chunk_index=i,
                successes=count,
                trials=trials,
                truncated=0,
                unverifiable=0,
                generated_tokens=0 if outcome else 80,
                is_outcome=outcome,
                planned=trials,
                error_bound=0.0,
                first_successes=count,
                first_trials=trials,
                q_low=0.0,
                q_high=1.0,
            )
        )
    return rows


def write_unit(
    store: RunStore, unit: str, rows: Sequence[tuple[Trajectory, Sequence[ChunkValue]]]
) -> None:
    """Write one unit whole."""
    tables = {
        "trajectories": Trajectory.to_table([t for t, _ in rows]),
        "values": ChunkValue.to_table([v for _, part in rows for v in part]),
    }
    units.write_unit(store, unit, tables, {"counts": COUNTS, "rejects": [], "seconds": 1.0})


def write_run(root: Path | str, config: RunConfig | None = None) -> RunStore:
    """A finished run of two units: one trajectory valued to its end, and one that stopped early."""
    store = RunStore(root).open(config or RunConfig(run_dir=str(root)))
    first, second = trajectory("t1"), trajectory("t2", ("a\n", "b\n", "c"))
    write_plan(store, UNITS, 4)
    log = UnitLog(store, Shard())
    log.start(2.0, 2)
    for unit, row in zip(
        UNITS, ((first, values(first)), (second, values(second, (4, 0)))), strict=True
    ):
        write_unit(store, unit, [row])
        log.finished(unit, COUNTS)
    log.end()
    return store
