"""Shards joined are the whole run: no unit missing, none twice, nothing of another run."""

from dataclasses import replace
from pathlib import Path

import pytest

from stepwiser.config import RunConfig
from stepwiser.config.annotation import Shard
from stepwiser.data.records import ChunkValue, Trajectory
from stepwiser.errors import UserError
from stepwiser.run.merge import keys_of, merge
from stepwiser.run.store import RunStore
from stepwiser.run.units import UnitLog, finished_units, log_files, read_log, read_plan, write_plan
from tests.stepwiser.run.annotated_run import COUNTS, trajectory, values, write_unit

PLANNED = ("u0", "u1", "u2", "u3")
COST = {
    "stage": "annotate", "seconds": 60.0, "generated_tokens": 100, "prompt_tokens": 10,
    "trained_tokens": 0, "peak_memory_gb": 1.5, "cpus": 2.0, "gpus": 2.0, "gpu_hours": 0.1,
}  # fmt: skip


def write_shard(root: Path, shard: Shard, weights: bytes = b"w", **config: object) -> RunStore:
    """What `annotate --shard` leaves in a directory of its own."""
    store = RunStore(root).open(RunConfig.model_validate({"run_dir": str(root), **config}))
    write_plan(store, PLANNED, 8)
    log = UnitLog(store, shard)
    log.start(2.0, 2)
    for position, unit in enumerate(PLANNED):
        if shard.owns(position):
            row = trajectory(f"t-{unit}")
            write_unit(store, unit, [(row, values(row))])
            log.finished(unit, COUNTS)
    log.end()
    store.write_metrics("cost-annotate", COST)
    policy = store.model_dir("policy")
    policy.mkdir(parents=True)
    (policy / "model.safetensors").write_bytes(weights)
    (policy / "config.json").write_text("{}")
    return store


def test_shards_joined_are_the_whole_run(tmp_path: Path) -> None:
    shards = [write_shard(tmp_path / f"s{i}", Shard(i, 2)) for i in range(2)]
    out = RunStore(tmp_path / "out")
    done = merge(shards, out)
    assert (done.copied, done.present, done.finished, done.planned) == (4, 0, 4, 4)
    assert finished_units(out) == set(PLANNED)
    for i, shard in enumerate(shards):
        for unit in PLANNED[i::2]:
            assert keys_of(out, unit) == keys_of(shard, unit)
    for table, row in (("trajectories", Trajectory), ("values", ChunkValue)):
        merged = row.from_table(out.read_table(table, "annotate"))
        parts = [r for s in shards for r in row.from_table(s.read_table(table, "annotate"))]
        assert sorted(merged, key=str) == sorted(parts, key=str)
    assert read_plan(out) == read_plan(shards[0])
    assert [log.name for log in log_files(out)] == ["log-0-of-2.jsonl", "log-1-of-2.jsonl"]
    assert out.find_model("policy", "segment")
    metrics = out.read_metrics("annotate")
    assert metrics["units"] == 4 and metrics["counts"]["problems"] == 4 * COUNTS["problems"]
    assert out.read_metrics("cost-annotate")["gpu_hours"] == pytest.approx(0.2)


def test_a_unit_that_is_twice_is_taken_once(tmp_path: Path) -> None:
    first, second = (write_shard(tmp_path / name, Shard()) for name in ("a", "b"))
    out = RunStore(tmp_path / "out")
    assert merge([first, second], out).present == 4
    again = merge([first, second, out], out)
    assert (again.copied, again.present, again.finished) == (0, 8, 4)
    assert out.read_metrics("annotate")["counts"]["problems"] == 4 * COUNTS["problems"]
    assert out.read_metrics("cost-annotate")["seconds"] == 120, "a source's cost counts once"
    for log in log_files(out):
        events = [event.get("unit") for event in read_log(log)]
        assert len(events) == 2 * (1 + 4 + 1), "two drivers, each line once"


def test_a_merge_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    shards = [write_shard(tmp_path / f"s{i}", Shard(i, 2)) for i in range(2)]
    out = RunStore(tmp_path / "out")
    merge(shards[:1], out)
    (out.root / "units" / "u0.json").unlink()  # as if it had stopped before the summary
    done = merge(shards, out)
    assert (done.copied, done.present, done.finished) == (3, 1, 4)


def test_a_unit_annotated_twice_differently_is_named(tmp_path: Path) -> None:
    first, second = (write_shard(tmp_path / name, Shard()) for name in ("a", "b"))
    (second.root / "units" / "u2.json").unlink()  # which says that it is done, once and for all
    row = replace(trajectory("t-u2"), trajectory_id="another sample")
    write_unit(second, "u2", [(row, values(row))])
    with pytest.raises(UserError, match="unit u2 is in .*annotated twice"):
        merge([first, second], RunStore(tmp_path / "out"))


def test_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a", Shard(0, 2))
    second = write_shard(tmp_path / "b", Shard(1, 2), annotate={"rollouts": 8})
    with pytest.raises(UserError, match="annotate.rollouts: 16 and 8"):
        merge([first, second], RunStore(tmp_path / "out"))
    assert not (tmp_path / "out").exists(), "nothing was written"
    third = write_shard(tmp_path / "c", Shard(1, 2), cluster={"shard": "1/2"}, engine={"count": 4})
    assert merge([first, third], RunStore(tmp_path / "out")).finished == 4


def test_another_policy_is_refused(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a", Shard(0, 2))
    second = write_shard(tmp_path / "b", Shard(1, 2), weights=b"v")
    with pytest.raises(UserError, match="different policies"):
        merge([first, second], RunStore(tmp_path / "out"))


def test_what_is_no_annotated_run_is_named(tmp_path: Path) -> None:
    out = RunStore(tmp_path / "out")
    with pytest.raises(UserError, match="not a run directory"):
        merge([RunStore(tmp_path / "none")], out)
    empty = RunStore(tmp_path / "empty").open(RunConfig())
    with pytest.raises(UserError, match="no annotated units"):
        merge([empty], out)
    with pytest.raises(UserError, match="nothing to merge"):
        merge([empty], empty)
