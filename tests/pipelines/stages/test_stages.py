"""Every stage for real, small: the command, its files, its report; and what ends it early."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from stepwiser.data.records import ChunkValue, JudgePrompt, Trajectory
from stepwiser.run.read_log import PromptReadLog
from stepwiser.run.status import read_status
from stepwiser.run.store import RunStore
from stepwiser.tasks import segment_plain
from tests.support.commands import finish, parquet_files, run, start, wait_for
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ONE = ("engine.count=1", "learner.workers=1")
"""For tests that are not about several of them, which tests/chaos and the shards below have."""


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    # Relative, as the shipped config has it: Ray's workers run in other directories.
    place = f"run_dir={os.path.relpath(folder, ROOT)}"
    return folder, run("quickstart", place, *ONE, timeout=1100)


def _metrics(folder: Path, stage: str) -> dict:
    return json.loads((folder / "metrics" / f"{stage}.json").read_text())


def test_it_ends_with_the_report(quickstart: tuple[Path, str]) -> None:
    folder, output = quickstart
    report = folder / "reports" / "report.html"
    assert report.is_file()
    assert str(report) in output.replace("\n", "")
    html = report.read_text()
    assert "<script src" not in html and "https://cdn" not in html
    for stage in ("segment", "annotate", "label", "train", "evaluate", "solve", "finetune"):
        assert (folder / "metrics" / f"{stage}.json").is_file()
        cost = json.loads((folder / "metrics" / f"cost-{stage}.json").read_text())
        assert cost["seconds"] > 0 and cost["peak_memory_gb"] > 0


def test_segmentation_teaches_the_format(quickstart: tuple[Path, str]) -> None:
    metrics = _metrics(quickstart[0], "segment")
    # A right answer may stand on a line that is no step: nothing else may be left out.
    file = quickstart[0] / "rejects" / "segment.json"
    rejects = json.loads(file.read_text()) if file.is_file() else []
    assert metrics["kept_responses"] - metrics["exact_segmentations"] == len(rejects)
    assert all(segment_plain(row["response"]) is None for row in rejects), rejects
    assert metrics["exact_share"] > 0.9
    assert metrics["after"]["well_formed"] > 0.8
    assert metrics["before"]["steps"] > metrics["after"]["steps"]


def test_annotation_is_whole_and_consistent(quickstart: tuple[Path, str]) -> None:
    store = RunStore(quickstart[0])
    trajectories = Trajectory.from_table(store.read_table("trajectories", "annotate"))
    values = ChunkValue.from_table(store.read_table("values", "annotate"))
    assert trajectories and values
    keys = Counter((v.trajectory_id, v.chunk_index) for v in values)
    assert max(keys.values()) == 1
    known = {t.trajectory_id: t for t in trajectories}
    for value in values:
        trajectory = known[value.trajectory_id]
        assert 0 <= value.successes <= value.trials
        assert value.trials == (1 if value.is_outcome else 8)
        assert value.is_outcome == (value.chunk_index == len(trajectory.chunks) - 1)
    for trajectory in trajectories:
        assert 0 < trajectory.problem_successes < trajectory.problem_trials == 8


def test_labels_are_balanced_and_problems_are_not_shared(quickstart: tuple[Path, str]) -> None:
    store = RunStore(quickstart[0])
    rows = JudgePrompt.from_table(store.read_table("judge_prompts", "label"))
    shares = Counter((row.split, row.label) for row in rows)
    assert shares["train", True] == shares["train", False] > 0
    problems = {
        split: {r.problem_id for r in rows if r.split == split} for split in ("train", "heldout")
    }
    assert not problems["train"] & problems["heldout"]


def test_chunks_that_were_annotated_twice_say_how_far_labels_repeat(
    quickstart: tuple[Path, str],
) -> None:
    folder, output = quickstart
    rows = _metrics(folder, "label")["repeats"]
    assert {(row["rule"], row["rollouts"]) for row in rows} == {
        (rule, size) for rule in ("abs_q", "rel_effective", "rel_ratio") for size in (1, 2, 4, 8)
    }
    for row in rows:
        assert row["chunks"] > 0 and 0.5 < row["agreement"] <= 1
    assert "Chunks annotated twice" in output
    assert "Chunks annotated twice" in (folder / "reports/report.html").read_text()
    counts = _metrics(folder, "annotate")["counts"]
    assert 0 < counts["repeat_tokens"] < counts["rollout_tokens"]


def test_training_ran_every_step_on_fresh_weights(quickstart: tuple[Path, str]) -> None:
    folder = quickstart[0]
    rows = [r for r in RunStore(folder).read_curve("judge") if r["kind"] == "train"]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert row["staleness_max"] == 0
        assert row["logprob_gap"] < 1e-4, "engines and learner agree after every publish"
    evaluated = [r for r in RunStore(folder).read_curve("judge") if r["kind"] == "evaluation"]
    assert {row["step"] for row in evaluated} == {1, 3}, "after every second step"
    assert all(0 <= row["heldout_balanced"] <= 1 for row in evaluated)
    for model in ("judge", "judge-last", "judge-best", "judge-discriminative"):
        assert (folder / "models" / model / "model.safetensors").is_file()
    assert "Rel-Effective, α = 0.8" in (folder / "models" / "judge" / "README.md").read_text()


def test_every_judge_is_scored(quickstart: tuple[Path, str]) -> None:
    metrics = _metrics(quickstart[0], "evaluate")
    assert set(metrics["judges"]) == {"start", "start, forced", "judge", "judge-discriminative"}
    for row in metrics["judges"].values():
        assert {"official", "by_final_answer"} <= set(row["single"])
        assert row["single"]["official"]["n_error"] == 12
        assert row["calibration_values"]["count"] > 0


def test_every_judge_is_asked_whether_it_can_be_trusted(quickstart: tuple[Path, str]) -> None:
    folder, output = quickstart
    metrics = _metrics(folder, "evaluate")
    spans = {"within the range", "6 operations", "values of 100 to 199"}
    for name, row in metrics["judges"].items():
        kinds = row["faithfulness"]["kinds"]
        assert {"unchanged", "result", "repaired"} <= set(kinds)
        assert kinds["unchanged"]["pairs"] == kinds["result"]["pairs"] == 6
        assert set(row["beyond"]) == spans and row["more"] == {}
        assert (row["agreement"] is None) == (name == "judge-discriminative")
        assert (folder / "judgements/faithfulness" / f"{name.replace(', ', '-')}.parquet").is_file()
    # Made to reason, every answer holds a working that can be read.
    forced = metrics["judges"]["start, forced"]["faithfulness"]["corrupted"]
    assert forced["worked"] > 0.8 * forced["asked"] > 0
    seen = json.loads((folder / "reports/contamination.json").read_text())
    assert set(seen["sets"]) == {"embedded", "evaluation_data"} | spans
    assert seen["training_problems"] == 64
    assert all(row["problems"] > 0 and row["flagged"] == 0 for row in seen["sets"].values())
    for title in ("Faithfulness", "Written solutions within", "Agreement between votes"):
        assert title in output
    assert "Whether to trust them" in (folder / "reports/report.html").read_text()


def test_an_evaluation_asks_only_what_is_new(quickstart: tuple[Path, str]) -> None:
    folder = quickstart[0]
    files = sorted((folder / "judgements").rglob("*.parquet"))
    stamps = [file.stat().st_mtime_ns for file in files]
    before = _metrics(folder, "evaluate")
    files[0].unlink()
    output = run("evaluate", f"run_dir={folder}", *ONE)
    assert output.count("starting 1 engine") == 1
    after = [file.stat().st_mtime_ns for file in files]
    assert after[0] != stamps[0] and after[1:] == stamps[1:]
    kept = [name for name in before["judges"] if name.replace(", ", "-") not in files[0].stem]
    assert kept and all(
        _metrics(folder, "evaluate")["judges"][name] == before["judges"][name] for name in kept
    )


def test_solve_and_finetune_report_costs(quickstart: tuple[Path, str]) -> None:
    solve = _metrics(quickstart[0], "solve")
    for row in solve["search"].values():
        total = row["accepted_tokens"] + row["rejected_tokens"] + row["judge_tokens"]
        assert row["total_tokens"] == pytest.approx(total)
        assert row["majority_at_cost"]["total_tokens"] >= row["total_tokens"] - 1e-6
    judges = {"start", "judge", "judge-discriminative"}
    assert solve["search"].keys() == judges
    sizes = {
        ("chunk_reset_majority", 2), ("chunk_reset_weighted", 2), ("best_of_n", 2),
        ("best_of_n", 4), ("weighted_vote", 2), ("weighted_vote", 4), ("beam_search", 2),
        ("early_stop", 2), ("early_stop", 4),
    }  # fmt: skip
    assert {(r["judge"], r["method"], r["size"]) for r in solve["methods"]} == {
        (judge, *size) for judge in judges for size in sizes
    }
    for row in solve["methods"]:
        assert row["total_tokens"] == pytest.approx(row["policy_tokens"] + row["judge_tokens"])
        assert 0 <= row["accuracy"] <= 1 and row["judge_tokens"] > 0
        assert row["seconds"] is None or row["seconds"] > 0
    assert "same total tokens" in " ".join(quickstart[1].split())
    finetune = _metrics(quickstart[0], "finetune")
    assert set(finetune["accuracy"]) == {"policy", "random", "judge", "random_right", "judge_right"}


def test_wandb_kept_an_offline_run(quickstart: tuple[Path, str]) -> None:
    for name in ("annotate", "judge"):
        run_id = (quickstart[0] / f"wandb-{name}.id").read_text()
        assert list((quickstart[0] / "wandb").glob(f"offline-run-*-{run_id}"))


def test_another_config_is_refused_with_the_difference(quickstart: tuple[Path, str]) -> None:
    output = run("label", f"run_dir={quickstart[0]}", "label.alpha=0.5", code=2)
    assert "label.alpha: 0.8 -> 0.5" in output


def _with_models(source: Path, target: Path, *models: str) -> Path:
    """A new run that already has some models: their stages need not run again."""
    for model in models:
        shutil.copytree(source / "models" / model, target / "models" / model)
    return target


def test_two_shards_fill_one_directory(quickstart: tuple[Path, str], tmp_path: Path) -> None:
    folder = _with_models(quickstart[0], tmp_path / "run", "policy")
    # Of a few problems one of two engines may take all.
    arguments = (f"run_dir={folder}", "data.limit=64")
    for shard, others in (("0/2", "8 of 16 units"), ("1/2", "16 of 16 units")):
        output = run("annotate", "--shard", shard, *arguments)
        assert f"shard {shard}: 8 of the run's 16 units" in output
        assert f"seen from shard {shard}: {others}" in " ".join(output.split())
    assert "every unit is already done" in run("annotate", *arguments), "the whole run"
    status = read_status(RunStore(folder))
    assert (status.state, status.units, status.problems) == ("done", 16, 64)
    assert status.labels.keys() == {"rel_effective"} and status.chunks > 0
    assert len(status.engines) == 2 and (status.tokens_per_s or 0) > 0
    assert all(engine.tokens_per_s > 0 for engine in status.engines)
    names = {path.stem for path in (folder / "units").glob("*.json")}
    for table in ("trajectories", "values"):
        assert {Path(name).stem for name in parquet_files(folder, table)} == names


def test_given_trajectories_are_annotated(quickstart: tuple[Path, str], tmp_path: Path) -> None:
    folder = _with_models(quickstart[0], tmp_path / "run", "policy")
    rows = RunStore(quickstart[0]).read_table("trajectories", "annotate")
    # One that the policy ended without an answer could not be checked, and would be refused; steps
    # that are given are put on lines of their own.
    known = {
        row.question: row
        for row in Trajectory.from_table(rows)
        if row.final_answer is not None and all(chunk.endswith("\n") for chunk in row.chunks[:-1])
    }
    given = tmp_path / "given.jsonl"
    with given.open("w") as file:
        for i, row in enumerate(list(known.values())[:6]):
            line = {"id": f"g{i}", "problem": row.question, "answer": row.answer}
            file.write(json.dumps(line | {"steps": row.chunks}) + "\n")
    run("annotate", f"run_dir={folder}", f"annotate.source={given}", *ONE)
    store = RunStore(folder)
    trajectories = Trajectory.from_table(store.read_table("trajectories", "annotate"))
    assert {t.trajectory_id for t in trajectories} == {f"g{i}" for i in range(6)}
    assert {tuple(t.chunks) for t in trajectories} == {
        tuple(row.chunks) for row in list(known.values())[:6]
    }
    values = ChunkValue.from_table(store.read_table("values", "annotate"))
    assert {v.trajectory_id for v in values} == {t.trajectory_id for t in trajectories}
    assert {v.trials for v in values if not v.is_outcome} == {8}


def _steps(folder: Path) -> list[int]:
    return [r["step"] for r in RunStore(folder).read_curve("judge") if r["kind"] == "train"]


def test_live_training_survives_sigkill(quickstart: tuple[Path, str], tmp_path: Path) -> None:
    folder = _with_models(quickstart[0], tmp_path / "run", "policy")
    arguments = (
        f"run_dir={folder}",
        "train.live=true",
        # Few steps are wrong, so that 30 to 50 problems are read.
        "data.limit=128",
        *ONE,
        "annotate.problems_per_unit=2",
        "cluster.cpus=4",
        "train.steps=8",
        "discriminative.enabled=false",
    )
    process = start("train", *arguments)
    log = PromptReadLog(str(folder))
    wait_for(lambda: any(read.step == 4 for read in log.read()), process)
    # With the driver all of Ray but its workers, which nobody is left to end.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before, trained = log.read(), _steps(folder)
    units = {p.name: p.stat().st_mtime_ns for p in (folder / "units").glob("*.json")}
    assert max(read.step for read in before) < 7, "killed half-way"
    run("train", *arguments)
    resumed = _steps(folder)[len(trained) :]
    assert resumed[0] >= 2, "it went on from a checkpoint"
    assert set(trained) | set(resumed) == set(range(8))
    assert (folder / "models" / "judge" / "model.safetensors").is_file()
    reads = log.read()
    assert reads[: len(before)] == before, "steps that are done again read what they have read"
    assert len({(read.step, read.number) for read in reads}) == len(reads)
    assert {read.step for read in reads} == set(range(8))
    after = {p.name: p.stat().st_mtime_ns for p in (folder / "units").glob("*.json")}
    assert all(after[name] == stamp for name, stamp in units.items()), "nothing is done twice"
    plan = json.loads((folder / "annotate" / "plan.json").read_text())
    assert len(after) < len(plan["units"]), "no more than training reads"
    # What it leaves is what the stages annotate and label leave.
    rows = JudgePrompt.from_table(RunStore(folder).read_table("judge_prompts", "label"))
    known = {row.prompt_id: row for row in rows}
    for read in reads:
        labels = [known[prompt].label for prompt in read.prompts]
        assert labels == [True] * 8 + [False] * 8
        assert all(known[prompt].split != "heldout" for prompt in read.prompts)
    for table in ("trajectories", "values", "judge_prompts"):
        schemas = [
            pq.read_schema(next((f / table).glob("*.parquet"))) for f in (folder, quickstart[0])
        ]
        assert schemas[0] == schemas[1], table
    live = _metrics(folder, "train")["live"]
    assert live["rollouts_read"] <= live["rollouts_made"]
    assert live["rollouts_made"] == _metrics(folder, "annotate")["counts"]["rollouts"]
    assert live["prompts_read"] == len({prompt for read in reads for prompt in read.prompts})


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_keeps_finished_work_and_leaves_no_process(
    quickstart: tuple[Path, str], tmp_path: Path, told: signal.Signals
) -> None:
    folder = _with_models(quickstart[0], tmp_path / "run", "policy")
    # Many small units: with a few large ones a quick machine is done before the signal arrives.
    process = start("annotate", f"run_dir={folder}", "annotate.problems_per_unit=1", *ONE)
    wait_for(lambda: len(list((folder / "units").glob("*.json"))) >= 2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(told)
    output = finish(process, 60)
    assert process.returncode == 130, output[-3000:]
    assert "*** SIGTERM" not in output and "stack trace" not in output.lower()
    assert "finished work is kept" in output
    assert "Traceback" not in output and "(raylet)" not in output, output[-3000:]
    deadline = time.monotonic() + 20
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family):
        assert time.monotonic() < deadline, [p for p in family if p.is_running()]
        time.sleep(0.5)
    for path in (folder / "values").glob("*.parquet"):
        pq.read_table(path)


def test_an_unwritable_run_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = run("label", f"run_dir={tmp_path}/file/run", code=2)
    assert "cannot write" in output and "run_dir" in output


def test_a_stage_without_its_input_names_the_stage_before(tmp_path: Path) -> None:
    output = run("train", f"run_dir={tmp_path}/run", code=2)
    assert "stepwiser label" in " ".join(output.split())


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    output = run("segment", f"run_dir={tmp_path}/run", "policy_model=./nothing", code=2)
    assert "nothing does not exist" in output


def test_a_plan_that_cannot_fit_fails_before_anything_starts(tmp_path: Path) -> None:
    output = run("annotate", f"run_dir={tmp_path}/run", "engine.count=40", code=2)
    assert "40 engine" in output and "short" in output


def test_help_imports_nothing_heavy() -> None:
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipelines.cli", "--help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    names = {line.rpartition("|")[2].strip() for line in loaded.splitlines()}
    assert not names & {"ray", "torch", "vllm", "transformers", "pydantic", "numpy"}
