"""A run directory in a bucket: units that count once whatever is killed, and what reads them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.evaluation.answers_file import AnswersFile
from stepwiser.config import RunConfig
from stepwiser.config.annotation import Shard
from stepwiser.data.records import ChunkValue, Trajectory
from stepwiser.errors import UserError
from stepwiser.prompting.hub.folders import model_folder, resolve_model
from stepwiser.report import build_report
from stepwiser.run.metrics_file import MetricsTail, append_metrics, read_metrics
from stepwiser.run.model_exports import (
    EVALUATION_FILE,
    Best,
    best_of,
    candidates_of,
    drop_candidates,
    has_model_file,
    keep_if_best,
    link_model,
    publish_model,
    read_model_file,
    write_model_file,
)
from stepwiser.run.read_log import PromptRead, PromptReadLog
from stepwiser.run.status import read_status
from stepwiser.run.store import CURVE, RunStore
from stepwiser.run.units import (
    UnitLog,
    finished_units,
    read_log,
    read_summary,
    read_unit,
    summarize,
    weights_id,
    write_unit,
)
from stepwiser.storage import lines, trees
from stepwiser.storage.places import open_storage, working_copy
from stepwiser.tasks import load_base_model_dir
from tests.stepwiser.run.annotated_run import COUNTS, UNITS, trajectory, values, write_run
from tests.stepwiser.storage.servers import BUCKET, FaultyProxy
from tests.support.paths import ROOT


@pytest.fixture
def address(proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"s3://{BUCKET}/{tmp_path.name}/run"


def on_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))


def test_a_run_reads_the_same_at_an_address(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(run_dir=address)
    written = [write_run(place, config) for place in (tmp_path / "run", address)]
    on_another_machine(monkeypatch, tmp_path)
    here, there = RunStore(tmp_path / "run"), RunStore(address)
    assert finished_units(there) == set(UNITS)
    assert [read_unit(there, unit) for unit in UNITS] == [read_unit(here, unit) for unit in UNITS]
    assert summarize(there, UNITS) == summarize(here, UNITS)
    assert there.config() == here.config()
    statuses = [read_status(store) for store in (here, there)]
    assert [s.state for s in statuses] == ["done", "done"]
    assert statuses[0].rollouts == statuses[1].rollouts == 16
    said = CliRunner().invoke(app, ["status", address])
    assert said.exit_code == 0 and f"{address}: done" in said.output.replace("\n", "")
    out = tmp_path / "out.jsonl"
    said = CliRunner().invoke(app, ["export", address, "--format", "trl", "--out", str(out)])
    assert said.exit_code == 0 and len(out.read_text().splitlines()) == 2
    pages = [Path(build_report(here)).read_text(), ""]
    assert build_report(there) == f"{address}/reports/report.html"
    pages[1] = there.storage.read("reports/report.html").decode()
    for page in pages:
        assert "16" in page and "cannot be read" not in page
    # Nothing of it is a folder of the machine that wrote it.
    assert not list(Path.cwd().glob("s3:*"))
    assert written[1].root.is_relative_to(tmp_path / "cache")


def test_another_config_is_refused_and_one_of_two_starts_makes_the_run(address: str) -> None:
    configs = [RunConfig(run_dir=address, seed=seed) for seed in range(4)]

    def start(config: RunConfig) -> bool:
        try:
            RunStore(address).open(config)
        except UserError as error:
            assert "was made by another config" in str(error) and "seed" in str(error)
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(start, configs)).count(True) == 1
    with pytest.raises(UserError, match="is not a run directory"):
        read_status(RunStore(f"{address}-2"))


def rows(successes: int) -> dict[str, pa.Table]:
    first = trajectory("t1")
    return {
        "trajectories": Trajectory.to_table([first]),
        "values": ChunkValue.to_table(values(first, (successes, 1, 0))),
    }


SUMMARY = {"counts": COUNTS, "rejects": [], "seconds": 1.0}


def test_of_several_writers_of_a_unit_one_counts(address: str, proxy: FaultyProxy) -> None:
    """Its rows are its own, also where it is asked to wait and its answer is lost."""
    store = RunStore(address)
    proxy.fault("PUT", times=3, status=503, code="SlowDown")
    proxy.fault("PUT", "units/", lose_answer=True)

    def write(successes: int) -> bool:
        summary = {**SUMMARY, "counts": {"problems": successes}}
        return write_unit(RunStore(address), "aaaa", rows(successes), summary)

    with ThreadPoolExecutor(4) as threads:
        first = list(threads.map(write, range(4)))
    assert first.count(True) == 1
    winner = first.index(True)
    assert read_summary(store, "aaaa")["counts"] == {"problems": winner}
    assert read_unit(store, "aaaa")[1]["t1"][0].successes == winner
    assert Counter(name.partition("/")[0] for name in store.storage.names()) == {
        "trajectories": 1,
        "values": 1,
        "units": 1,
    }


WRITER = """
import os, sys
from stepwiser.data.records import ChunkValue, Trajectory
from stepwiser.run.store import RunStore
from stepwiser.run.units import write_unit
from tests.stepwiser.run.annotated_run import COUNTS, trajectory, values
first = trajectory("t1")
tables = {
    "trajectories": Trajectory.to_table([first]),
    "values": ChunkValue.to_table(values(first)),
}
print("ready", flush=True)
for line in sys.stdin:
    if not (child := os.fork()):
        write_unit(RunStore(line.strip()), "aaaa", tables, {"counts": COUNTS, "rejects": []})
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""Writes the unit into each run that it reads of, in a process that may be killed."""


def test_a_unit_is_whole_or_not_there_after_a_kill(address: str, proxy: FaultyProxy) -> None:
    """Killed at each of the three writes, as the store gets it or when it has it; then the unit is
    done again, and counts once."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        for number, part in enumerate(("trajectories/", "values/", "units/")):
            for moment in ("before", "after"):
                run, child = f"{address}-{number}-{moment}", queue.Queue[int]()

                def kill(child: queue.Queue[int] = child) -> None:
                    os.kill(child.get(timeout=60), signal.SIGKILL)

                proxy.fault("PUT", part, **{moment: kill}, lose_answer=moment == "after")
                if moment == "before":
                    proxy.faults[-1].status = 500
                print(run, file=writer.stdin, flush=True)
                child.put(int(writer.stdout.readline()))
                assert int(writer.stdout.readline()) == signal.SIGKILL
                store, done = RunStore(run), (number, moment) == (2, "after")
                assert finished_units(store) == ({"aaaa"} if done else set())
                assert write_unit(store, "aaaa", rows(3), SUMMARY) is not done
                assert finished_units(store) == {"aaaa"}
                assert len(read_unit(store, "aaaa")[0]) == 1
                assert summarize(store, ["aaaa"])["counts"]["problems"] == COUNTS["problems"]
        writer.stdin.close()


def test_what_is_missing_or_broken_is_named_by_its_address(address: str) -> None:
    store = RunStore(address)
    store.storage.put("units/aaaa.json", b'{"counts": ')
    with pytest.raises(UserError, match=r"units/aaaa.json cannot be read"):
        read_summary(store, "aaaa")
    store.storage.put("units/aaaa.json", b'{"counts": {}, "rejects": [], "rows": "aaaa.1"}')
    with pytest.raises(UserError, match=r"aaaa.1.parquet cannot be read: it is not there"):
        read_unit(store, "aaaa")


def test_lines_of_several_processes_come_whole(
    address: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{address}/{CURVE}"
    append_metrics(path, "train", "judge", {"step": 0, "reward": 0.0})
    tail = MetricsTail(path, ("train",), from_end=True)
    monkeypatch.setattr(lines, "PART", 200)
    for step in range(1, 6):
        append_metrics(path, "train", "judge", {"step": step, "reward": 0.5})
        assert [row["step"] for row in tail.read()] == [step]
    code = (
        "from stepwiser.run.metrics_file import append_metrics\n"
        f"append_metrics({path!r}, 'train', 'judge', {{'step': 5, 'reward': 1.0}})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert [row["reward"] for row in tail.read()] == [1.0]
    curve = read_metrics(path, "train", "judge")
    assert [row["step"] for row in curve] == list(range(6)) and curve[5]["reward"] == 1.0
    assert len(RunStore(address).read_curve("judge")) == 7
    assert len(RunStore(address).storage.names(CURVE)) >= 3


def test_a_diary_costs_few_requests_and_a_killed_driver_few_lines(
    address: str, proxy: FaultyProxy
) -> None:
    log = UnitLog(RunStore(address), Shard())
    log.start(1.0, 300)
    proxy.requests.clear()
    for number in range(300):
        log.finished(f"{number:04x}", COUNTS)
    assert len(proxy.requests) <= 2
    log.end()
    events = [event["event"] for event in read_log(log.path)]
    assert events == ["start", *["unit"] * 300, "end"]


def test_a_model_is_published_whole_and_loaded_by_its_address(
    address: str, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, base = RunStore(address), load_base_model_dir()
    with pytest.raises(UserError, match=r"models/policy does not exist yet: run `stepwiser segm"):
        store.find_model("policy", "segment")
    # Cut off before its list is there, it is no model.
    proxy.fault("PUT", trees.LIST, times=10**6, status=403, code="AccessDenied")
    with pytest.raises(UserError, match="allow reading, writing"):
        publish_model(base, store.model("policy"))
    assert not store.has_model("policy")
    proxy.faults.clear()
    publish_model(base, store.model("policy"))
    on_another_machine(monkeypatch, tmp_path)
    model = store.find_model("policy", "segment")
    assert resolve_model(model) == model == f"{address}/models/policy"
    small = model_folder(model, weights=False)
    assert (small / "config.json").is_file() and not list(small.glob("*.safetensors"))
    folder = model_folder(model)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == {
        p.name: p.read_bytes() for p in base.iterdir() if p.is_file()
    }
    assert weights_id(model) == weights_id(base)
    proxy.requests.clear()
    assert model_folder(model) == folder
    assert len(proxy.requests) == 1, "what is here is not fetched again"


def test_a_model_that_is_replaced_meanwhile_is_read_whole(
    address: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    def folder(number: int) -> Path:
        made = tmp_path / f"model {number}"
        made.mkdir()
        for name in ("config.json", "model.safetensors"):
            (made / name).write_text(str(number))
        return made

    place = f"{address}/models/judge-last"
    publish_model(folder(1), place)
    second = folder(2)
    proxy.fault("GET", "model.safetensors", before=lambda: publish_model(second, place))
    found = trees.bring(open_storage("model", place), working_copy(place))
    assert found is not None
    assert {p.read_text() for p in found.iterdir()} == {"2"}


def _judge(folder: Path, version: int, score: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(str(version))
    (folder / EVALUATION_FILE).write_text(json.dumps({"version": version, "f1": score}))
    return folder


def test_the_best_judge_of_a_bucket_is_one_of_its_candidates(address: str, tmp_path: Path) -> None:
    """As in a folder: tests/stepwiser/run/test_model_exports.py."""
    best, last, used = (f"{address}/models/judge{name}" for name in ("-best", "-last", ""))
    kept, candidate = [], ""
    for version, score in enumerate([float("nan"), 0.5, 0.7, 0.7, 0.6, 0.9], 1):
        candidate = f"{candidates_of(best)}/step-{version}"
        publish_model(_judge(tmp_path / str(version), version, score), candidate)
        kept.append(keep_if_best(candidate, best, "f1"))
    assert kept == [False, True, True, False, False, True]
    assert not keep_if_best(candidate, best, "f1"), "repeated after a crash"
    assert best_of(best, "f1") == Best(6, 0.9)
    storage = open_storage("model", best)
    assert len(storage.names()) == 4, "three files of the best, and what says so"
    # Of a learner that died on the way.
    publish_model(_judge(tmp_path / "7", 7, 1.0), f"{candidates_of(best)}/step-7")
    drop_candidates(best)
    assert len(storage.names()) == 4 and (model_folder(best) / "config.json").is_file()
    publish_model(_judge(tmp_path / "8", 8, 0.1), last)
    write_model_file(last, "README.md", "the last one")
    for source, version in ((last, "8"), (best, "6")):
        link_model(source, used)
        assert (model_folder(used) / "model.safetensors").read_text() == version
        assert has_model_file(used, "README.md") == (source == last)
    assert read_model_file(last, "README.md") == b"the last one"
    with pytest.raises(FileNotFoundError):
        read_model_file(best, "README.md")
    with pytest.raises(FileNotFoundError):
        write_model_file(f"{address}/models/none", "README.md", "of nothing")


def test_a_candidate_that_is_taken_away_meanwhile_is_no_best(
    address: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    """By a learner that starts again, while the evaluator of the one before still works."""
    best = f"{address}/models/judge-best"
    for version in (1, 2, 3):
        candidate = f"{candidates_of(best)}/step-{version}"
        publish_model(_judge(tmp_path / str(version), version, version / 10), candidate)
        if version == 2:
            proxy.fault("PUT", "judge-best/files.json", before=lambda: drop_candidates(best))
            with pytest.raises(FileNotFoundError, match="was taken away"):
                keep_if_best(candidate, best, "f1")
        elif version == 3:
            proxy.fault("PUT", "step-3/files.json", before=lambda: drop_candidates(best))
            with pytest.raises(FileNotFoundError):
                write_model_file(candidate, "README.md", "the third")
        else:
            assert keep_if_best(candidate, best, "f1")
        assert best_of(best, "f1") == Best(1, 0.1)
        assert (model_folder(best) / "model.safetensors").read_text() == "1"
    drop_candidates(best)
    assert len(open_storage("model", best).names()) == 4


def test_lines_that_later_starts_read_are_there_at_once(address: str) -> None:
    log = PromptReadLog(address)
    for step in range(3):
        log.add(PromptRead(step, 0, (f"p{step}",)))
    assert [read.prompts for read in PromptReadLog(address).read()] == [("p0",), ("p1",), ("p2",)]
    storage = open_storage("run_dir", address)
    answers = AnswersFile(storage, "answers/critic.jsonl")
    answers["a"] = {"text": "one"}
    answers["b"] = {"text": "two\u2028"}
    assert dict(AnswersFile(storage, "answers/critic.jsonl")) == dict(answers)
