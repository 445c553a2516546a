"""Stages whose run directory lies in a bucket of a real S3 server, as a person starts them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from stepwiser.run.store import RunStore
from stepwiser.run.units import finished_units, read_unit
from tests.stepwiser.storage.servers import BUCKET, s3_server, use_endpoint
from tests.support.commands import run
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

SMALLEST = ("data.limit=8", "segment.problems=48", "segment.evaluation_problems=8")


def test_a_policy_and_its_units_in_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"run_dir=s3://{BUCKET}/the run"
    with s3_server(tmp_path / "server.log") as url:
        use_endpoint(monkeypatch, url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        stages = ("--stages", "segment,annotate,report")
        run("quickstart", *SMALLEST, place, *stages)
        # Another machine goes on: it has nothing of the run, and nothing is done again.
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        store = RunStore(f"s3://{BUCKET}/the run")
        before = store.storage.names()
        said = run("annotate", *SMALLEST, place)
        assert "every unit is already done, kept" in said
        units = finished_units(store)
        assert len(units) == 2 and all(read_unit(store, unit) for unit in units)
        status = json.loads(CliRunner().invoke(app, ["status", store.place, "--json"]).output)
        assert (status["state"], status["problems"]) == ("done", 8)
        rows = [name for name in before if name.startswith(("values/", "trajectories/"))]
        assert len(rows) == 4
        assert {name for name in store.storage.names() if name in rows} == set(rows)
        assert b"Annotation" in store.storage.read("reports/report.html")
    assert not list(ROOT.glob("s3:*"))
