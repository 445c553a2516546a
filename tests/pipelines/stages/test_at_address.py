"""Stages whose run directory lies in a bucket of a real S3 server, as a person starts them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from stepwiser.annotation.joining import UNIT_LEASES
from stepwiser.prompting.hub.folders import model_folder
from stepwiser.run.model_card import read_judge_settings
from stepwiser.run.model_exports import publish_model, read_evaluation
from stepwiser.run.status import read_status
from stepwiser.run.store import RunStore
from stepwiser.run.units import BY, finished_units, read_plan, read_summary, read_unit
from stepwiser.storage.lease import Leases
from stepwiser.tasks import make_problems
from tests.chaos import given
from tests.chaos.killing import Family
from tests.stepwiser.storage.servers import BUCKET, rclone_server, s3_server, use_endpoint
from tests.support.commands import finish, run, start, wait_for
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SMALLEST = (
    "segment.problems=64",
    "segment.sft.steps=60",
    "segment.evaluation_problems=8",
    "engine.count=1",
    "data.limit=48",
    "train.steps=6",
    "train.checkpoint_every=1",
    "label.heldout_share=0.3",  # by which the best judge is told
    "evaluate.wrong=4",
    "evaluate.right=4",
    "evaluate.beyond=0",
    "evaluate.faithfulness=0",
    "solve.methods=[chunk_reset]",
    "select.problems=8",
)
SLOWLY = "engine.max_num_seqs=8"
"""Units are done one after the other."""
AFTER = ("train", "evaluate", "solve", "select", "finetune", "report")
ADDRESS = f"s3://{BUCKET}/the run"


def owner_of(store: RunStore, pid: int) -> str | None:
    """What the leases call the start that is this process."""
    said = Leases(store.storage, UNIT_LEASES, "").others()
    return next((name for name, one in said.items() if one["process"]["pid"] == pid), None)


def writers(store: RunStore) -> dict[str, str]:
    """Who did each unit that is done."""
    return {unit: read_summary(store, unit)[BY] for unit in finished_units(store)}


def test_two_join_a_run_in_a_bucket_and_the_second_outlives_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"run_dir={ADDRESS}"
    with s3_server(tmp_path / "server.log") as url:
        use_endpoint(monkeypatch, url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        run("segment", *SMALLEST, place)
        store = RunStore(ADDRESS)
        with Family("annotate", *SMALLEST, SLOWLY, place) as first:
            first.wait_for(lambda: owner_of(store, first.process.pid) is not None)
            one = owner_of(store, first.process.pid)
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
            second = start("annotate", "--join", ADDRESS, *SMALLEST, SLOWLY, forked=True)
            wait_for(lambda: len(Leases(store.storage, UNIT_LEASES, "").others()) > 1, second)
            alone = Counter(writers(store).values())[one]
            first.wait_for(lambda: Counter(writers(store).values())[one] > alone)
        first.process.wait()  # with all that it had started
        output = finish(second)
        assert second.returncode == 0, output
        units = finished_units(store)
        plan = read_plan(store)
        assert plan is not None and units == set(plan["units"]) and len(units) == 12
        did = Counter(writers(store).values())
        assert len(did) == 2 and did[one] >= 1
        words = re.search(r"\S+ did (\d+) of these (\d+) units, others (\d+)", output)
        assert words, output
        mine, among, others = map(int, words.groups())
        assert mine + others == among and mine == 12 - did[one]
        # Every row once, whatever the first had under way.
        rows = [read_unit(store, unit)[0] for unit in units]
        assert max(Counter(row.trajectory_id for part in rows for row in part).values()) == 1
        status = json.loads(CliRunner().invoke(app, ["status", ADDRESS, "--json"]).output)
        assert (status["state"], status["problems"], status["free_units"]) == ("done", 48, 0)
        assert status["owners"] == [] and not store.storage.names(UNIT_LEASES)
        # Training is lost with all of its machine; another one, that has nothing of the run, goes
        # on from its last checkpoint, and nothing is done again.
        with Family("quickstart", *SMALLEST, place, "--stages", "label,train") as trained:
            trained.wait_for(lambda: len(_steps(store)) >= 3)
        trained.process.wait()
        lost, before = _steps(store), store.storage.names()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
        said = run("quickstart", *SMALLEST, place, "--stages", f"annotate,{','.join(AFTER)}")
        assert "every unit is already done, kept" in said
        kept = [name for name in before if name.startswith(("values/", "trajectories/", "units/"))]
        assert set(kept) <= set(store.storage.names())
        steps = _steps(store)
        assert sorted(set(steps)) == list(range(6)), "every step is trained"
        assert steps[: len(lost)] == lost and steps[len(lost)] >= lost[-1] - 1, "not from the start"
        assert sorted(_evaluated(store)) == [2, 4, 6]
        best = read_evaluation(store.model("judge-best"))
        assert best is not None and best["version"] in (2, 4, 6)
        for model in ("judge", "judge-last", "judge-best"):
            settings = read_judge_settings(model_folder(store.model(model), weights=False))
            assert settings is not None and settings.version in (2, 4, 6)
        left = [name for name in store.storage.names("models/judge-best") if "candidates" in name]
        assert all(f"/step-{best['version']:06d}-" in name for name in left), "others went away"
        for stage in AFTER[:-1]:
            assert store.read_metrics(stage), stage
        page = store.storage.read("reports/report.html").decode()
        for title in (
            "Finding the first wrong step",
            "Solving with the judge",
            "Choosing training",
        ):
            assert title in page, title
        assert b"judge" in store.storage.read("reports/benchmarks.csv")
        assert read_status(store).state == "done"
        assert "already done, kept" in run("train", *SMALLEST, place)
    assert not list(ROOT.glob("s3:*"))


def _steps(store: RunStore) -> list[int]:
    """Of the judge's training, in the order in which they were trained."""
    return [row["step"] for row in store.read_curve("judge") if row["kind"] == "train"]


def _evaluated(store: RunStore) -> set[int]:
    return {r["version"] for r in store.read_curve("judge") if r["kind"] == "evaluation"}


def test_a_store_that_holds_no_conditions_serves_one_start_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rclone_server(tmp_path / "server.log", tmp_path / "objects") as url:
        use_endpoint(monkeypatch, url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        problems = make_problems(8, seed=5)
        made = given.make_run(tmp_path / "made", problems)
        store = RunStore(ADDRESS)
        publish_model(tmp_path / "made" / "models" / "policy", store.model("policy"))
        small = (*made, f"run_dir={ADDRESS}", "engine.count=1")
        said = run("quickstart", *small, "--stages", "annotate,report")
        assert "this store has no conditional puts" in " ".join(said.split())
        assert "every unit is already done" in run("annotate", *small)
        assert given.keys_in(ADDRESS) == [given.keys_of(n, p) for n, p in enumerate(problems)]
        assert b"Annotation" in store.storage.read("reports/report.html")
        assert read_status(store).state == "done"
