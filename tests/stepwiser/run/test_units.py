"""Shards are disjoint and whole; a log is read while it is written."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from stepwiser.annotation.label_rules import LabelRule
from stepwiser.annotation.stopping import Question
from stepwiser.annotation.throughput import EngineCounters
from stepwiser.config import load_config
from stepwiser.config.annotation import Shard
from stepwiser.errors import UserError
from stepwiser.run.store import RunStore
from stepwiser.run.units import (
    UnitLog,
    count_labels,
    finished_units,
    log_files,
    planned_units,
    read_log,
    read_plan,
    read_unit,
    sweep,
    weights_id,
)
from tests.stepwiser.run.annotated_run import UNITS, write_run
from tests.support.paths import ROOT


def test_shards_share_every_unit_out_once() -> None:
    shards = [Shard.parse(f"{i}/4") for i in range(4)]
    for position in range(11):
        assert [shard.owns(position) for shard in shards].count(True) == 1
    assert [i for i in range(11) if shards[1].owns(i)] == [1, 5, 9]
    assert Shard.parse("0/1") == Shard() and all(Shard().owns(i) for i in range(5))
    assert str(shards[3]) == "3/4"


@pytest.mark.parametrize("text", ["4/4", "0/0", "-1/4", "1", "a/b", "1/4/2", ""])
def test_a_shard_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="shard"):
        Shard.parse(text)
    with pytest.raises(UserError, match="cluster.shard"):
        load_config(ROOT / "configs" / "embedded.yaml", [f"cluster.shard='{text}'"])


def test_shards_of_one_directory_have_the_same_config() -> None:
    from stepwiser.config import difference

    path = ROOT / "configs" / "embedded.yaml"
    whole, part = load_config(path), load_config(path, ["cluster.shard=1/4"])
    assert difference(whole, part) == {}


def test_units_are_those_with_a_summary(tmp_path) -> None:
    store = write_run(tmp_path)
    (tmp_path / "units" / ".cccc.json.12.tmp").write_text("{")
    (tmp_path / "values" / "dddd.parquet").write_text("half")
    assert finished_units(store) == set(UNITS)
    assert read_plan(store) == {"units": list(UNITS), "problems": 4}
    trajectories, values = read_unit(store, "bbbb")
    assert [t.trajectory_id for t in trajectories] == ["t2"]
    assert [v.successes for v in values["t2"]] == [4, 0]


def test_a_line_being_written_is_left_out(tmp_path) -> None:
    store = write_run(tmp_path)
    UnitLog(store, Shard(1, 2)).start(1.0, 5)
    first, second = log_files(store)
    with first.open("a") as file:
        file.write('{"time":1,"event":"un')
    assert [e["event"] for e in read_log(first)] == ["start", "unit", "unit", "end"]
    assert [e["units"] for e in read_log(second)] == [5]


def test_labels_are_counted_by_the_rule(tmp_path) -> None:
    store = write_run(tmp_path)
    total: Counter[str] = Counter()
    for unit in UNITS:
        trajectories, by_trajectory = read_unit(store, unit)
        rows = [value for part in by_trajectory.values() for value in part]
        total += count_labels(Question(LabelRule.ABS_Q), trajectories, rows)
    assert total == {"labelled: abs_q": 5, "positive: abs_q": 3}


def test_lines_of_several_threads_do_not_mix(tmp_path) -> None:
    log = UnitLog(write_run(tmp_path), Shard(2, 3))
    many = {index: EngineCounters(1.2345, 10, 20, 5) for index in range(1000)}
    with ThreadPoolExecutor(8) as threads:
        for _ in range(50):
            threads.submit(log.engines, 8.0, 12.3456, many)
            threads.submit(log.finished, "aaaa", {"chunks": 3})
    events = list(read_log(log.path))
    assert Counter(event["event"] for event in events) == {"engines": 50, "unit": 50}
    line = next(event for event in events if event["event"] == "engines")
    assert (line["gpus"], line["gpu_seconds"]) == (8.0, 12.35)
    assert line["engines"]["999"] == [1.23, 10, 20, 5]


def test_a_shard_s_units_come_from_the_plan(tmp_path) -> None:
    store = write_run(tmp_path)
    assert planned_units(store, Shard(1, 2)) == [UNITS[1]]
    assert planned_units(RunStore(tmp_path / "new"), Shard()) == []


def test_a_line_that_a_kill_cut_off_costs_that_line_only(tmp_path) -> None:
    store = write_run(tmp_path)
    (log,) = log_files(store)
    with log.open("a") as file:
        file.write('{"time":1,"event":"un')
    UnitLog(store, Shard()).start(0.0, 1)
    UnitLog(store, Shard()).end()
    events = [e["event"] for e in read_log(log)]
    assert events == ["start", "unit", "unit", "end", "start", "end"]


def test_sweeping_takes_half_written_files_of_these_units_only(tmp_path) -> None:
    store = write_run(tmp_path)
    kept = {path for path in tmp_path.rglob("*") if path.is_file()}
    # Another shard may be writing this one.
    other = tmp_path / "units" / ".cccc.json.12.tmp"
    other.write_text("{")
    for name in ("trajectories/.aaaa.parquet.7.tmp", "units/.bbbb.json.12.tmp"):
        (tmp_path / name).write_text("half")
    sweep(store, set(UNITS))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == kept | {other}
    sweep(RunStore(tmp_path / "nothing"), set(UNITS))


def test_weights_have_their_name_by_content_pickled_ones_too(tmp_path) -> None:
    names = []
    for index, file in enumerate(("model.safetensors", "model.safetensors", "pytorch_model.bin")):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / file).write_bytes(bytes([index]) * 9)
        names.append(weights_id(folder))
    other = tmp_path / "other"
    other.mkdir()
    (other / "pytorch_model.bin").write_bytes(b"other")
    names.append(weights_id(other))
    assert len(set(names)) == 4
    # What is not loaded does not count.
    (tmp_path / "0" / "pytorch_model.bin").write_bytes(b"old")
    assert weights_id(tmp_path / "0") == names[0]
