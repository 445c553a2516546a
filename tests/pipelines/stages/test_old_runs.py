"""Run directories of version 0.1 open, resume and report (tests/fixtures/README.md)."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from stepwiser.config.aliases import RENAMED
from stepwiser.report import build_report
from stepwiser.run.export import Format, export
from stepwiser.run.metrics_file import Metrics, read_metrics
from stepwiser.run.read_log import PromptRead, PromptReadLog
from stepwiser.run.status import read_status
from stepwiser.run.store import RunStore
from stepwiser.run.units import finished_units
from tests.support.commands import command_environment
from tests.support.paths import ROOT

ARCHIVE = ROOT / "tests" / "fixtures" / "runs-0.1.tar.xz"


@pytest.fixture
def old_runs(tmp_path: Path) -> Path:
    """Folder of the unpacked runs."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    for run in ("quickstart", "training"):
        file = tmp_path / run / "config.yaml"
        text = file.read_text().replace("@RUN@", str(tmp_path / run))
        file.write_text(text.replace("@JUDGE@", str(tmp_path / "tiny-judge")))
    return tmp_path


def _stepwiser(stage: str, run: Path, *arguments: str) -> str:
    """The command with the run's own, old configuration file."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", stage, "-c", str(run / "config.yaml"), *arguments],
        cwd=ROOT,
        env=command_environment(forked=True),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def _steps(run: Path) -> list[Metrics]:
    return read_metrics(str(RunStore(run).curve), "train", "judge")


def test_an_old_run_opens_and_its_settings_have_their_new_names(old_runs: Path) -> None:
    config = RunStore(old_runs / "training").config()
    assert config.segment.segmentations == 2
    assert config.solve.samples_per_chunk == 3
    assert config.train.max_sampling_rounds == 6
    assert config.train.dynamic_sampling
    RunStore(old_runs / "training").open(config)


def test_an_old_run_is_reported_exported_and_its_status_read(old_runs: Path) -> None:
    store = RunStore(old_runs / "quickstart")
    page = Path(build_report(store)).read_text()
    f1 = store.read_metrics("evaluate")["judges"]["judge"]["single"]["official"]["f1"]
    assert f"{f1:.3f}" in page
    for title in ("Segmentation", "Annotation", "Labels", "Training", "ProcessBench", "Cost"):
        assert title in page
    status = read_status(store)
    assert (status.units, status.planned_units, status.problems) == (4, 4, 32)
    counts = export(store, Format.TRL, old_runs / "steps.jsonl", None)
    assert counts["written"] == len((old_runs / "steps.jsonl").read_text().splitlines()) > 20


def test_reads_of_an_old_live_training_go_on_in_their_file(tmp_path: Path) -> None:
    file = tmp_path / "train" / "draws.jsonl"
    file.parent.mkdir()
    file.write_text(json.dumps({"step": 0, "draw": 1, "prompts": ["a", "b"]}) + "\n")
    log = PromptReadLog(str(tmp_path))
    log.add(PromptRead(1, 0, ("c",)))
    assert log.read() == [PromptRead(0, 1, ("a", "b")), PromptRead(1, 0, ("c",))]
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.slow
def test_an_old_training_goes_on_from_its_checkpoint(old_runs: Path) -> None:
    run = old_runs / "training"
    before = _steps(run)
    assert [row["step"] for row in before] == [0, 1, 2]
    # Annotation was finished: two of its units are made again, by the names that they had.
    units = finished_units(RunStore(run))
    for name in sorted(units)[:2]:
        (run / "units" / f"{name}.json").unlink()
    output = _stepwiser("annotate", run)
    for old, new in RENAMED.items():
        assert f"{old} is called {new} now" in output
    assert "2 of 4 units are already done" in output
    assert finished_units(RunStore(run)) == units
    _stepwiser("train", run)
    after = _steps(run)
    assert [row["step"] for row in after] == list(range(12))
    assert after[0] == before[0], "what the listed checkpoint holds is not trained again"
    assert all(row["optimizer_steps"] == 2 * (row["step"] + 1) for row in after)
    assert (run / "models" / "judge" / "model.safetensors").is_file()
    assert "Training" in Path(build_report(RunStore(run))).read_text()
