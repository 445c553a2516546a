"""Every command that only reads gives an answer or names the file, whatever a run is left like."""

from __future__ import annotations

import json
import random
import shutil
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from stepwiser.config import RunConfig, load_config
from stepwiser.report import build_report
from stepwiser.run.metrics_file import append_metrics, read_metrics
from stepwiser.run.store import RunStore
from tests.stepwiser.annotation.test_cost import COUNTS as WORK
from tests.stepwiser.run.annotated_run import write_run
from tests.support.paths import ROOT

ARCHIVE = ROOT / "tests" / "fixtures" / "runs-0.1.tar.xz"
TRIES = 48


def whole_run(root: Path) -> Path:
    """A run with something of every kind that the commands read."""
    config = RunConfig(run_dir=str(root), policy_model="embedded")
    store = write_run(root, config)
    shares = [{"rule": "abs_q", "positive_share": 0.5}, {"rule": "rel_ratio"}]
    store.write_metrics("label", {"rules": shares})
    store.write_metrics("annotate", {"counts": WORK, "rollouts_per_prefix": 80, "rejects": []})
    costs = {"gpu_hours": 1.0, "seconds": 2.0, "peak_memory_gb": 1.0}
    store.write_metrics("cost-annotate", costs)
    model = store.model_dir("policy")
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    header = json.dumps({"w": {"shape": [2, 3]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    for step in range(3):
        append_metrics(str(store.curve), "train", "judge", {"step": step, "reward": 0.5})
    return root


def commands(run: Path, out: Path) -> list[list[str]]:
    return [
        ["status", str(run)],
        ["status", str(run), "--json"],
        *(
            ["export", str(run), "--format", form, "--out", str(out / form)]
            for form in ("hf", "trl", "math-shepherd")
        ),
        ["merge", str(run), "--out", str(out / "merged")],
        ["plan", "annotate", "--run", str(run)],
    ]


def check(run: Path, out: Path, what: str) -> set[int]:
    """Each command answers (0) or says what is wrong (2), with a file's or the run's name."""
    codes = set()
    for command in commands(run, out):
        result = CliRunner().invoke(app, command)
        where = f"{' '.join(command)} after {what}: {result.output}"
        assert result.exit_code in (0, 2), f"{where} {result.exception!r}"
        assert "Traceback" not in result.output, where
        if result.exit_code:
            assert run.name in result.output.replace("\n", ""), where
        codes.add(result.exit_code)
    assert Path(build_report(RunStore(run))).is_file(), (
        "the report says at its top what is not whole"
    )
    shutil.rmtree(out, ignore_errors=True)
    return codes


def damage(run: Path, rng: random.Random) -> str:
    """Delete, empty, cut or overwrite a part of a file, or delete a folder."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    file = rng.choice(files)
    name = file.relative_to(run)
    kind = rng.choice(("delete", "empty", "cut", "cut", "cut", "garble", "folder"))
    content = file.read_bytes()
    if kind == "delete":
        file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "cut":
        file.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif kind == "garble":
        at = rng.randrange(len(content) + 1)
        file.write_bytes(content[:at] + rng.randbytes(3) + content[at + 3 :])
    elif file.parent != run:
        shutil.rmtree(file.parent)
    return f"{kind} of {name}"


def test_a_whole_run_is_answered(tmp_path: Path) -> None:
    assert check(whole_run(tmp_path / "the-run"), tmp_path / "out", "nothing") == {0}


def test_a_damaged_run_is_answered_or_named(tmp_path: Path) -> None:
    rng = random.Random(14)
    kept = whole_run(tmp_path / "kept" / "the-run")
    for _ in range(TRIES):
        run = tmp_path / "the-run"
        shutil.copytree(kept, run)
        check(run, tmp_path / "out", " and ".join(damage(run, rng) for _ in range(2)))
        shutil.rmtree(run)


def test_old_runs_that_were_damaged_are_answered_or_named(tmp_path: Path) -> None:
    rng = random.Random(1)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "kept", filter="data")
    configs = sorted((tmp_path / "kept").rglob("config.yaml"))
    assert configs
    for kept in (file.parent for file in configs):
        for _ in range(TRIES // 12):
            run = tmp_path / kept.name
            shutil.copytree(kept, run)
            check(run, tmp_path / "out", damage(run, rng))
            shutil.rmtree(run)


@pytest.mark.parametrize("stopping", ["fixed", "exact", "sequential"])
def test_status_of_a_run_whose_rules_gave_no_label(tmp_path: Path, stopping: str) -> None:
    """A rule that rollouts were stopped early for others leaves a share that is not known."""
    config = load_config(
        ROOT / "configs" / "embedded.yaml",
        [f"annotate.stopping={stopping}", f"run_dir={tmp_path}/run"],
    )
    store = write_run(tmp_path / "run", config)
    rules = [
        {"rule": "rel_effective", "positive_share": 0.25},
        {"rule": "abs_q", "positive_share": None},
    ]
    store.write_metrics("label", {"rules": rules})
    result = CliRunner().invoke(app, ["status", str(store.root)])
    assert result.exit_code == 0, result.output
    assert "positive labels, rel_effective" in result.output and "25.0%" in result.output
    shown = json.loads(CliRunner().invoke(app, ["status", str(store.root), "--json"]).output)
    assert shown["labels"] == {"rel_effective": 0.25, "abs_q": None}


def test_a_curve_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_metrics(str(path), "train", "judge", {"step": 0})
    with path.open("ab") as file:
        file.write(b'{"kind": "train", "name": "jud')
    append_metrics(str(path), "train", "judge", {"step": 1})
    assert [row["step"] for row in read_metrics(str(path), "train", "judge")] == [0, 1]
    assert [row["step"] for row in RunStore(tmp_path).read_curve("judge")] == [0, 1]
