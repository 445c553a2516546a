"""The commands that only read run directories, as a person types them."""

import json
import re
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipelines.cli import app
from pipelines.cli.joined_config import joined_config
from pipelines.monitoring.formatting import duration
from stepwiser.annotation.joining import UNIT_LEASES, OwnerReport
from stepwiser.annotation.throughput import EngineCounters
from stepwiser.config import RunConfig
from stepwiser.config.annotation import Shard
from stepwiser.run.store import RunStore
from stepwiser.run.units import UnitLog, write_plan
from tests.stepwiser.annotation.test_cost import COUNTS
from tests.stepwiser.run.annotated_run import write_run
from tests.stepwiser.run.test_merge import write_shard


def run(*arguments: object, code: int = 0) -> str:
    result: Result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_export(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    out = tmp_path / "out.jsonl"
    output = run("export", tmp_path / "run", "--format", "trl", "--out", out, "--rule", "abs_q")
    assert "2 trajectories, 5 labelled steps, 60.0% of them positive" in output
    assert len(out.read_text().splitlines()) == 2
    again = ("export", tmp_path / "run", "--out", out, "--format")
    assert "exists already" in run(*again, "trl", code=2)
    assert "none of hf, trl, math-shepherd" in run(*again, "csv", code=2)
    assert "none of abs_q" in run(*again, "trl", "--rule", "best", code=2)


def test_merge(tmp_path: Path) -> None:
    first, second = (write_shard(tmp_path / f"s{i}", Shard(i, 2)).root for i in range(2))
    out = tmp_path / "out"
    output = run("merge", first, "--out", out)
    assert "2 units copied; it holds 2 of the run's 4" in output
    assert "2 units are still to be annotated" in output
    output = run("merge", first, second, "--out", out)
    assert "2 units copied, 2 were there already; it holds 4 of the run's 4" in output
    assert "not a run directory" in run("merge", tmp_path / "none", "--out", out, code=2)


def test_status(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    output = run("status", tmp_path / "run")
    assert "done" in output and "2 of 2" in output and "4 of 4" in output
    assert json.loads(run("status", tmp_path / "run", "--json"))["rollouts"] == 16
    assert "not a run directory" in run("status", tmp_path, code=2)


def test_status_names_engines_one_by_one_up_to_a_dozen(tmp_path: Path) -> None:
    store = write_run(tmp_path / "run")
    log = UnitLog(store, Shard())
    log.start(0.0, 1)
    for seconds in (1.0, 11.0):
        tokens = round(100 * seconds)
        look = {i: EngineCounters(seconds, tokens, tokens, tokens // 2) for i in range(14)}
        log.engines(0.0, 0.0, look)
    output = run("status", tmp_path / "run")
    assert "100 tokens/s, 50.0% from cache" in output
    assert "engine 11" in output and "engine 12" not in output and "2 more" in output
    assert "rollouts/s" in output and "saved" not in output
    assert len(json.loads(run("status", tmp_path / "run", "--json"))["engines"]) == 14


def test_plan_says_what_it_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # narrow tables break the words that are looked for
    output = run("plan", "annotate", "--model", "7B", "--gpus", "8xA100")
    assert "13.6" in output and "$2 per GPU-hour: assumed" in output
    store = RunStore(tmp_path / "run").open(RunConfig())
    assert "metrics/annotate.json" in run("plan", "annotate", "--run", store.root, code=2)
    store.write_metrics("annotate", {"counts": COUNTS, "rollouts_per_prefix": 16})
    store.write_metrics("cost-annotate", {"gpu_hours": 0.5})
    output = run("plan", "annotate", "--run", store.root, "--problems", 1000, "--price", 1.5)
    for words in ("measured in run", "the run's own", "1.7 M", "$1.5 per GPU-hour: given"):
        assert words in output
    output = run("plan", "annotate", "--rate", 4000, "--rollout-share", 0.5, "--gpus", "H100")
    assert "given" in output and "4,000" in output
    for arguments, reason in (
        (["label"], "annotate and train only"),
        (["annotate", "--model", "big"], "not a size"),
        (["annotate", "--gpus", "8xTPU"], "one of A100"),
        (["annotate", "--rollout-share", "2"], "at most 1"),
        (["annotate", "--rate", "0"], "above 0"),
    ):
        assert reason in run("plan", *arguments, code=2)


@pytest.mark.parametrize(
    "seconds, words",
    [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273_700, "3 d 4 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_who_joins_has_the_runs_config_and_a_cluster_of_its_own(tmp_path: Path) -> None:
    made = RunConfig(run_dir="elsewhere", seed=7, cluster={"shard": "0/2", "address": "far:6379"})
    RunStore(tmp_path / "run").open(made)
    config = joined_config(str(tmp_path / "run"), None, ["engine.count=5", "cluster.cpus=3"])
    assert (config.seed, config.run_dir, config.engine.count) == (7, str(tmp_path / "run"), 5)
    assert config.cluster == RunConfig().cluster.model_copy(update={"cpus": 3})
    assert "seed: 7 -> 8" in run("annotate", "--join", tmp_path / "run", "seed=8", code=2)
    scenario = tmp_path / "other.yaml"
    scenario.write_text("annotate: {rollouts: 3}\nengine: {count: 4}\nseed: 7\n")
    said = run("annotate", "--join", tmp_path / "run", "-c", scenario, code=2)
    assert f"annotate.rollouts: {made.annotate.rollouts} -> 3" in said and "seed" not in said
    scenario.write_text("engine: {count: 4}\nseed: 7\n")
    assert joined_config(str(tmp_path / "run"), scenario, []).engine.count == 4
    both = ("annotate", "--join", tmp_path / "run", "run_dir=another")
    assert "names the run already" in run(*both, code=2)
    assert "not a run directory" in run("annotate", "--join", tmp_path / "none", code=2)


def test_status_says_who_works_and_what_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    store = RunStore(tmp_path / "run").open(RunConfig())
    write_plan(store, ["a", "b", "c"], 3)
    said = vars(OwnerReport(12, 0.02, 40.0, {"a": 1.0}, ("b",)))
    owner = {**said, "beat": 1, "time": time.time() - 9, "process": {}}
    store.write_json(f"{UNIT_LEASES}/owners/far-0a1b2c.json", owner)
    output = run("status", tmp_path / "run")
    assert re.search(r"far-0a1b2c\W+2 held, 12 done, 72 units/h, seen \d+ s ago", output)
    assert re.search(r"nobody's\W+1\b", output)
