"""Status reads what is there: from logs where they are, from summaries where they are not."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from stepwiser.annotation.joining import UNIT_LEASES, OwnerReport
from stepwiser.config import RunConfig
from stepwiser.config.annotation import Shard
from stepwiser.errors import UserError
from stepwiser.run import units
from stepwiser.run.status import (
    RECENT_S,
    SILENT_S,
    EngineStatus,
    OwnerStatus,
    read_status,
    to_json,
    work_before,
)
from stepwiser.run.store import RunStore
from stepwiser.run.units import UnitLog, write_plan
from tests.stepwiser.run.annotated_run import COUNTS, write_run

NOW = 1_000_000.0
TOKENS = COUNTS["response_tokens"] + COUNTS["rollout_tokens"]


def write_log(store: RunStore, events: list[dict], shard: str = "0-of-1") -> None:
    path = store.root / "annotate" / f"log-{shard}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def start(seconds_ago: float, gpus: float = 2.0) -> dict:
    return {"time": NOW - seconds_ago, "event": "start", "gpus": gpus, "units": 4}


def unit(name: str, seconds_ago: float, **more: int) -> dict:
    return {"time": NOW - seconds_ago, "event": "unit", "unit": name, "counts": COUNTS | more}


def end(seconds_ago: float) -> dict:
    return {"time": NOW - seconds_ago, "event": "end"}


def engines(
    seconds_ago: float, gpus: float, gpu_seconds: float, **counters: tuple[float, int, int, int]
) -> dict:
    """`e0=(seconds, generated, prompt, cached)`"""
    look = {name.removeprefix("e"): list(counts) for name, counts in counters.items()}
    line = {"event": "engines", "gpus": gpus, "gpu_seconds": gpu_seconds, "engines": look}
    return {"time": NOW - seconds_ago, **line}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """Four planned units, none finished."""
    store = RunStore(tmp_path / "run").open(RunConfig())
    write_plan(store, ["u0", "u1", "u2", "u3"], 8)
    return store


def finish(store: RunStore, *units: str, **counts: object) -> None:
    for name in units:
        summary = {"counts": COUNTS, "rejects": [], "seconds": 1.0} | counts
        store.write_json(f"units/{name}.json", summary)


def test_before_the_first_unit(store: RunStore) -> None:
    status = read_status(store, NOW)
    assert (status.state, status.units, status.planned_units) == ("not started", 0, 4)
    assert status.tokens_per_s is status.eta_s is status.last_s is None
    write_log(store, [start(90)])
    status = read_status(store, NOW)
    assert status.state == "running" and status.eta_s is None
    assert status.gpu_hours == pytest.approx(2 * 90 / 3600)


def test_while_it_goes_on(store: RunStore) -> None:
    finish(store, "u0", "u1")
    write_log(store, [start(100), unit("u0", 60), unit("u1", 20)])
    status = read_status(store, NOW)
    assert (status.state, status.units, status.problems) == ("running", 2, 4)
    assert (status.planned_units, status.planned_problems) == (4, 8)
    assert (status.trajectories, status.chunks, status.rollouts) == (2, 6, 16)
    assert status.tokens == 2 * TOKENS
    assert status.tokens_per_s == pytest.approx(2 * TOKENS / 100), "since the start, up to now"
    assert status.eta_s == pytest.approx(2 / (2 / 100))
    assert status.gpu_hours == pytest.approx(2 * 100 / 3600)
    assert status.last_s == 20
    assert status.difficulty == {"all_right": 2, "mixed_problems": 2, "all_wrong": 0}


def test_only_the_last_minutes_count_for_the_rate(store: RunStore) -> None:
    finish(store, "u0", "u1", "u2")
    write_log(store, [start(9000), unit("u0", 8000), unit("u1", 300), unit("u2", 100)])
    status = read_status(store, NOW)
    assert status.tokens_per_s == pytest.approx(2 * TOKENS / RECENT_S)
    assert status.units == 3


def test_an_interruption_is_no_slow_work(store: RunStore) -> None:
    finish(store, "u0", "u1")
    write_log(store, [start(500), unit("u0", 400), end(390), start(50), unit("u1", 10)])
    status = read_status(store, NOW)
    assert status.units_per_s == pytest.approx(1 / 50)
    assert status.gpu_hours == pytest.approx(2 * (110 + 50) / 3600)


def test_shards_add_up(store: RunStore) -> None:
    finish(store, "u0", "u1", "u2")
    write_log(store, [start(200), unit("u0", 100), unit("u2", 20)], "0-of-2")
    write_log(store, [start(150, gpus=4.0), unit("u1", 50)], "1-of-2")
    status = read_status(store, NOW)
    assert status.units_per_s == pytest.approx(3 / 200)
    assert status.gpu_hours == pytest.approx((2 * 200 + 4 * 150) / 3600)


def test_after_it_ended(store: RunStore) -> None:
    finish(store, "u0", "u1", "u2", "u3")
    write_log(store, [start(1000), *(unit(f"u{i}", 800 - 100 * i) for i in range(4)), end(490)])
    status = read_status(store, NOW)
    assert status.state == "done" and status.eta_s is None
    assert status.tokens_per_s == pytest.approx(4 * TOKENS / 500), "of the work, not of the pause"
    assert status.gpu_hours == pytest.approx(2 * 510 / 3600)


def test_a_killed_driver_is_not_waited_for(store: RunStore) -> None:
    finish(store, "u0", "u1")
    write_log(store, [start(SILENT_S + 300), unit("u0", SILENT_S + 100)])
    os.utime(store.root / "units" / "u1.json", (NOW, NOW - SILENT_S))
    status = read_status(store, NOW)
    assert status.state == "stopped" and status.eta_s is None
    assert status.units == 2 and status.tokens == 2 * TOKENS, "u1 finished, the log lacks it"
    assert status.gpu_hours == pytest.approx(2 * 200 / 3600)


def test_what_went_wrong_is_said_by_reason(store: RunStore) -> None:
    reject = {"problem_id": "p", "reason": "engine died"}
    finish(store, "u0", rejects=[reject])
    write_log(store, [start(10), unit("u0", 5, rejected=1, **{"malformed: nested": 3})])
    status = read_status(store, NOW)
    assert status.rejected == {"engine died": 1} and status.dropped == {"nested": 3}
    assert status.problems == 3, "a rejected problem is dealt with"


def test_gpu_hours_are_of_what_engines_held(store: RunStore) -> None:
    finish(store, "u0", "u1")
    first = [start(3000), engines(2970, 2, 40), engines(2100, 8, 4000), unit("u0", 2090)]
    write_log(store, first)
    # It died; its last word is the unit, and it held 8 GPUs until then.
    again = [start(900), unit("u1", 800), engines(500, 4, 1500), end(400)]
    write_log(store, again)
    held = (4000 + 8 * 10, 1500 + 4 * 100)
    assert read_status(store, NOW).gpu_hours == pytest.approx(sum(held) / 3600)
    write_log(store, [start(30), engines(10, 3, 60)])
    assert read_status(store, NOW).gpu_hours == pytest.approx((sum(held) + 60 + 3 * 10) / 3600)
    before = work_before(store, "0/1", {"u0", "u1"})
    assert before.gpu_hours == pytest.approx(sum(held) / 3600), "without the start that asks"
    assert (before.units, before.counts["rollouts"]) == (2, 16)
    assert work_before(store, "1/2", {"u0"}).gpu_hours == 0.0


def test_engines_are_measured_over_the_last_minutes(store: RunStore) -> None:
    finish(store, "u0", "u1")
    log = [
        start(1000),
        engines(990, 2, 10, e0=(5, 0, 0, 0), e1=(5, 0, 0, 0)),
        engines(RECENT_S + 1, 2, 800, e0=(400, 1000, 10, 0), e1=(400, 1000, 10, 0)),
        unit("u0", 500),
        engines(400, 2, 1200, e0=(600, 2000, 20, 5)),  # engine 1 has gone, engine 2 comes
        engines(1, 4, 1998, e0=(1000, 7000, 110, 85), e2=(200, 5000, 0, 0)),
        unit("u1", 1),
    ]
    write_log(store, log)
    write_log(store, [start(700), engines(650, 1, 1, e0=(1, 0, 0, 0))], shard="1-of-2")
    status = read_status(store, NOW)
    assert status.engines == [
        EngineStatus("0/1", 0, 6000 / 600, 85 / 100),
        EngineStatus("0/1", 2, 25.0, None),
    ]
    assert status.rollouts_per_s == pytest.approx(2 * COUNTS["rollouts"] / RECENT_S)
    assert status.saved_share is None, "nothing stops early"
    assert json.loads(to_json(status))["engines"][0]["tokens_per_s"] == 10.0


def test_what_stopping_early_saved(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"annotate": {"stopping": "exact", "rollouts": 16}})
    store = RunStore(tmp_path / "run").open(config)
    write_plan(store, ["u0"], 2)
    assert read_status(store, NOW).saved_share is None
    finish(store, "u0")
    write_log(store, [start(10), unit("u0", 5)])
    assert read_status(store, NOW).saved_share == pytest.approx(1 - 8 / (2 * 16))


def test_labels_come_from_the_counts_then_from_the_label_stage(store: RunStore) -> None:
    finish(store, "u0")
    labels = {"labelled: abs_q": 8, "positive: abs_q": 6}
    write_log(store, [start(10), unit("u0", 5, **labels)])
    assert read_status(store, NOW).labels == {"abs_q": 0.75}
    store.write_metrics("label", {"rules": [{"rule": "rel_ratio", "positive_share": 0.5}]})
    assert read_status(store, NOW).labels == {"rel_ratio": 0.5}


def test_a_run_without_plan_or_log_still_says_what_it_has(tmp_path: Path) -> None:
    store = write_run(tmp_path / "run")
    for file in (store.root / "annotate").iterdir():
        file.unlink()
    status = read_status(store)
    assert (status.units, status.planned_units, status.state) == (2, None, "stopped")
    assert status.tokens_per_s is None, "the files' dates would say when they were copied"
    assert json.loads(to_json(status)) == asdict(status)
    with pytest.raises(UserError, match="not a run directory"):
        read_status(RunStore(tmp_path))


def test_of_ten_thousand_units_only_those_that_no_log_knows_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path).open(RunConfig())
    names = [f"{i:016x}" for i in range(10_000)]
    write_plan(store, names, 80_000)
    (tmp_path / "units").mkdir()
    text = json.dumps({"counts": COUNTS, "rejects": [], "seconds": 1.0})
    for name in names[:9_990]:
        (tmp_path / "units" / f"{name}.json").write_text(text)
    UnitLog(store, Shard()).start(8.0, 10_000)
    write_log(store, [unit(name, 10_000 - i) for i, name in enumerate(names[:9_980])])
    # Three hours of eight engines, a line each half a minute.
    busy = {f"e{i}": (12_345.67, 123_456_789, 12_345_678, 9_876_543) for i in range(8)}
    write_log(store, [engines(10_000 - i, 8, 80_000, **busy) for i in range(0, 9_000, 25)])
    opened: list[str] = []

    opens = units.read_summary

    def read_summary(store: RunStore, name: str) -> dict:
        opened.append(name)
        return opens(store, name)

    monkeypatch.setattr(units, "read_summary", read_summary)
    parse, parsed = json.loads, []

    def loads(text: str | bytes) -> Any:
        parsed.append(text)
        return parse(text)

    monkeypatch.setattr(json, "loads", loads)
    status = read_status(store)
    assert sorted(opened) == names[9_980:9_990]
    lines = len((tmp_path / "annotate" / "log-0-of-1.jsonl").read_text().splitlines())
    assert lines <= len(parsed) < lines + 30, "the log once, and a few files"
    assert status.units == 9_990 and status.chunks == 9_990 * COUNTS["chunks"]


def test_who_works_on_what(store: RunStore) -> None:
    assert read_status(store, NOW).owners == [] and read_status(store, NOW).free_units == 4
    finish(store, "u0")
    for name, said in {
        "far-1": OwnerReport(1, 0.25, 4.0, {"u0": 3.0, "u1": 2.0}, ()),
        "near-2": OwnerReport(begun={"u2": 1.0}),
    }.items():
        text = json.dumps({**vars(said), "beat": 1, "time": NOW - 7, "process": {}})
        store.storage.put(f"{UNIT_LEASES}/owners/{name}.json", text.encode())
    status = read_status(store, NOW)
    assert status.owners == [
        OwnerStatus("far-1", 1, 1, 0.25, 7.0),
        OwnerStatus("near-2", 1, 0, 0.0, 7.0),
    ]
    assert status.free_units == 1


def test_starts_beside_each_other_have_diaries_of_their_own(store: RunStore) -> None:
    finish(store, "u0", "u1", "u2")
    looks = [engines(90, 1, 10, e0=(1, 0, 0, 0)), engines(10, 1, 90, e0=(81, 400, 0, 0))]
    write_log(store, [start(100, gpus=1.0), looks[0], unit("u0", 60), looks[1]])
    joined = UnitLog(store, Shard(), "host-ab12cd")
    assert joined.title == "0/1 host-ab12cd"
    write_log(store, [start(100, gpus=1.0), *looks, unit("u1", 50), end(5)], joined.path.stem[4:])
    status = read_status(store, NOW)
    assert {one.shard for one in status.engines} == {"0/1", "0/1 host-ab12cd"}
    assert status.gpu_hours == pytest.approx((90 + 10 + 90 + 5) / 3600)
    assert status.units == 3
