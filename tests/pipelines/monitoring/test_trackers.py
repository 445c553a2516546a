"""Curves in every tracker's real library, read back with its reader; what a failing one does."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.evaluation.inline_evaluation import log_evaluation
from pipelines.monitoring import trackers
from pipelines.monitoring.trackers import TRACKERS, Trackers
from stepwiser.config import RunConfig, flatten, load_config
from stepwiser.config.models import TrackerName
from stepwiser.errors import UserError
from stepwiser.run.store import RunStore

STEPS = (0, 1, 2, 3)
REWARD = {step: 0.1 * step for step in STEPS}


@pytest.fixture(scope="module", autouse=True)
def trackio_keeps_its_runs_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trackio reads its folder's name when it is imported, which TRL may have had done before."""
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
            patch.delitem(sys.modules, name)
        patch.setenv("TRACKIO_DIR", str(folder))
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setattr(trackers, "FINISH_S", 120.0)  # on a machine that does much else
        yield folder


def _run(folder: Path, tracker: Any, **more: Any) -> tuple[RunConfig, RunStore, Console]:
    config = RunConfig(run_dir=str(folder), name="tracked", tracker=tracker, **more)
    return config, RunStore(folder).open(config), Console(file=io.StringIO(), width=200)


def _said(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def _train_twice(folder: Path, tracker: Any) -> Console:
    """As training logs: steps, an evaluation that comes late, a kill, and a second start."""
    config, store, console = _run(folder, tracker)
    with Trackers(config, store, "judge", console) as curve:
        for step in STEPS[:2]:
            curve.log({"step": step, "kind": "train", "reward": REWARD[step]})
        log_evaluation(curve, {"step": 0, "kind": "evaluation", "heldout_balanced": 0.75})
    # The engines of a second start may differ, which MLflow calls a change of its parameters.
    config, store, _ = _run(folder, tracker, engine={"count": 3})
    with Trackers(config, store, "judge", console) as curve:
        for step in STEPS[2:]:
            curve.log({"step": step, "kind": "train", "reward": REWARD[step]})
    return console


def _tensorboard(folder: Path) -> tuple[dict[str, dict[int, float]], dict[str, str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / "judge")).Reload()
    curves = {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    rows = [line.strip("| ").split(" | ", 1) for line in text.splitlines()[2:]]
    return curves, {key.strip("`"): value.strip('"') for key, value in rows}


def _mlflow(folder: Path) -> tuple[dict[str, dict[int, float]], dict[str, str]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("stepwiser")
    mine = "attributes.run_name = 'tracked/judge'"
    (run,) = client.search_runs([experiment.experiment_id], mine)
    assert run.info.status == "FINISHED"
    curves = {
        name: {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }
    return curves, run.data.params


def _trackio(folder: Path) -> tuple[dict[str, dict[int, float]], dict[str, str]]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    run_id = (folder / "trackio-judge.id").read_text()
    (run,) = [run for run in trackio.Api().runs("stepwiser") if run.name.endswith(run_id)]
    curves: dict[str, dict[int, float]] = {}
    for row in SQLiteStorage.get_logs("stepwiser", run.name):
        for name in row.keys() & {"reward", "heldout_balanced"}:
            curves.setdefault(name, {})[row["step"]] = row[name]
    return curves, {key: str(value) for key, value in (run.config or {}).items()}


READERS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "trackio": _trackio}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run in all of them at once, and what the terminal said."""
    folder = tmp_path_factory.mktemp("tracked")
    return folder, _said(_train_twice(folder, (*READERS, "wandb")))


@pytest.mark.parametrize("library", READERS)
def test_a_curve_and_its_settings_are_read_back(tracked: tuple[Path, str], library: str) -> None:
    folder, said = tracked
    assert said == ""
    curves, settings = READERS[library](folder)
    assert curves["reward"] == pytest.approx(REWARD), "both starts, one curve"
    assert curves["heldout_balanced"] == {0: pytest.approx(0.75)}, "at the step it is about"
    assert settings["train.steps"] == "800" and settings["policy_model"] == "embedded"
    assert len(settings) >= len([value for value in flatten(RunConfig()).values() if value])


def test_wandb_continues_one_offline_run(tracked: tuple[Path, str]) -> None:
    folder, _ = tracked
    run_id = (folder / "wandb-judge.id").read_text()
    files = [path.name for path in folder.glob("wandb/offline-run-*/run-*.wandb")]
    assert set(files) == {f"run-{run_id}.wandb"}


def test_shards_have_curves_of_their_own_over_problems(tmp_path: Path) -> None:
    config, store, console = _run(tmp_path, "tensorboard")
    for name in ("annotate", "annotate-1-of-2"):
        with Trackers(config, store, name, console, axis="problems") as curve:
            curve.log({"step": 7, "problems": 40, "gpu_hours": 0.5})
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == {
        "annotate",
        "annotate-1-of-2",
    }
    (tmp_path / "tensorboard" / "annotate").rename(tmp_path / "tensorboard" / "judge")
    assert _tensorboard(tmp_path)[0]["gpu_hours"] == {40: pytest.approx(0.5)}


def test_the_library_learns_that_the_work_failed(tracked: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    config, store, console = _run(tracked[0], "mlflow")
    with pytest.raises(KeyboardInterrupt), Trackers(config, store, "annotate", console):
        raise KeyboardInterrupt
    client = MlflowClient(tracking_uri=f"sqlite:///{tracked[0]}/mlflow.db")
    experiment = client.get_experiment_by_name("stepwiser")
    (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name LIKE '%annotate'")
    assert run.info.status == "FAILED" and _said(console) == ""


# --- what fails -----------------------------------------------------------------------------------


def _log_ten(curve: Trackers) -> None:
    with curve:
        for step in range(10):
            curve.log({"step": step, "reward": 0.5})


@pytest.mark.parametrize("library", TRACKERS)
def test_a_library_that_is_missing_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    for name in {library, "torch.utils.tensorboard"} if library == "tensorboard" else {library}:
        monkeypatch.setitem(sys.modules, name, None)
    config, store, console = _run(tmp_path, library)
    _log_ten(Trackers(config, store, "judge", console))
    assert _said(console).count(f"{library} has no curve of judge") == 1
    assert f"pip install 'stepwiser[{library}]'" in _said(console)


def test_a_disk_that_cannot_be_written_ends_one_tracker_alone(tmp_path: Path) -> None:
    config, store, console = _run(tmp_path, ("tensorboard", "trackio"))
    (tmp_path / "tensorboard").touch()  # where its folder would be
    _log_ten(Trackers(config, store, "judge", console))
    assert _said(console).count("has no curve") == _said(console).count("tensorboard has no") == 1
    assert len(_trackio(tmp_path)[0]["reward"]) == 10


def test_a_server_that_is_gone_is_named_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config, store, console = _run(tmp_path, "mlflow")
    curve = Trackers(config, store, "judge", console)
    began = time.monotonic()
    curve.__enter__()
    for step in range(10):
        curve.log({"step": step, "reward": 0.5})
    assert time.monotonic() - began < 1.0, "training goes on"
    curve.__exit__(None)
    assert _said(console).count("mlflow has no curve of judge") == 1


def test_little_is_waited_for_one_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "FINISH_S", 0.2)
    monkeypatch.setattr(TRACKERS["wandb"], "__enter__", lambda self: time.sleep(2.0))
    config, store, console = _run(tmp_path, "wandb")
    began = time.monotonic()
    _log_ten(Trackers(config, store, "judge", console))
    assert time.monotonic() - began < 1.5
    assert "still sending" in _said(console)


def test_the_key_takes_one_several_or_none(tmp_path: Path) -> None:
    for value, expected in (
        ("none", ()),
        ("mlflow", ("mlflow",)),
        ("[wandb, tensorboard, wandb]", ("wandb", "tensorboard")),
    ):
        names: tuple[TrackerName, ...] = load_config(None, [f"tracker={value}"]).trackers
        assert names == expected
    for wrong in ("tensorbord", "[wandb, none]"):
        with pytest.raises(
            UserError, match=r"tracker: .* is none of wandb, tensorboard, mlflow, tr"
        ):
            load_config(None, [f"tracker={wrong}"])
    config, store, console = _run(tmp_path, "none")
    _log_ten(Trackers(config, store, "judge", console))
    assert set(os.listdir(tmp_path)) <= {"config.yaml", "environment.json"} and _said(console) == ""
