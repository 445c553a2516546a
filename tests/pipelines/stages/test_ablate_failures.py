"""An arm that fails, in whatever way, is named and has no score, and the others go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from actors.learner.worker_group import TrainingError
from actors.pool.client import EnginesLost
from pipelines.session.session import Session
from pipelines.stages import ablate
from stepwiser.config import RunConfig
from stepwiser.data.records import StepItem
from stepwiser.errors import UserError
from stepwiser.run.store import RunStore

ARMS = ("first", "second", "third")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    arms = {name: {"train.steps": 10 + i} for i, name in enumerate(ARMS)}
    return RunConfig.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "judge_model": "embedded",
            "discriminative": {"enabled": False},
            "ablate": {"arms": arms, "reference": "second", "seeds": 2},
        }
    )


class _Work:
    """What needs Ray, left out: it says only which arm is worked on in which session."""

    def __init__(self) -> None:
        self.failures: dict[tuple[str, str], BaseException] = {}
        self.done: list[tuple[str, str]] = []
        self.session_of: dict[tuple[str, str], Session] = {}

    def start(self, session: Session, stages: Any) -> None:
        session.store.open(session.config)

    def run(self, session: Session, stages: Any) -> None:
        key = session.store.root.parent.name, session.store.root.name
        self.session_of[key] = session
        if key in self.failures:
            raise self.failures[key]
        self.done.append(key)
        session.store.write_metrics("cost-train", {"seconds": 60.0})
        folder = session.store.model_dir("judge")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")

    def score(self, session: Session, spec: Any, items: Any) -> dict[str, Any]:
        return {
            "f1": 0.5,
            "error_accuracy": 0.5,
            "correct_accuracy": 0.5,
            "majority_f1": 0.5,
            "missing_share": 0.0,
            "tokens": 9.0,
        }


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> _Work:
    work = _Work()
    monkeypatch.setattr(Session, "start", lambda session, stages: work.start(session, stages))
    monkeypatch.setattr(ablate, "_run", work.run)
    monkeypatch.setattr(ablate, "_score", work.score)
    monkeypatch.setattr(ablate, "judge_start", lambda session: "start")
    items = [StepItem("1", "q", ["c"], -1, True, "g")]
    monkeypatch.setattr(ablate, "evaluation_items", lambda session: items)
    return work


def _remote(cause: Exception) -> Exception:
    return RayTaskError("generate", "Traceback of another process", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (lambda: UserError("no [gradient] in it"), "no [gradient] in it"),
        (lambda: TrainingError("rank 0 died"), "TrainingError: rank 0 died"),
        (lambda: EnginesLost("all engines are lost"), "EnginesLost: all engines are lost"),
        (lambda: TimeoutError("600 s are over"), "TimeoutError: 600 s are over"),
        (lambda: _remote(ValueError("odd weights")), "ValueError: odd weights"),
        (lambda: _remote(UserError("too long")), "too long"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_other_arms_go_on(
    config: RunConfig,
    work: _Work,
    failure: Callable[[], Exception],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work.failures["seed-0", "first"] = failure()
    with pytest.raises(UserError) as raised:
        ablate.run_ablation(config, [], None)
    assert str(raised.value) == (
        f"arm first of seed 0 failed: {words}; the same command tries them again"
    )
    assert words in " ".join(capsys.readouterr().out.split())
    arms = [key for key in work.done if key[1] != "shared"]
    assert arms == [
        ("seed-0", "second"),
        ("seed-0", "third"),
        *(("seed-1", name) for name in ARMS),
    ]
    assert work.done.count(("seed-0", "shared")) == 1
    assert work.session_of["seed-0", "second"] is not work.session_of["seed-0", "first"]
    assert work.session_of["seed-0", "second"] is work.session_of["seed-0", "third"]
    report = json.loads((Path(config.run_dir) / "reports" / "ablation.json").read_text())
    assert report["figures"]["f1"]["first"]["values"] == [0.5], "of seed 1"
    assert RunStore(Path(config.run_dir) / "seed-0" / "first").read_metrics(ablate.RESULT) is None

    work.failures.clear()
    work.done.clear()
    ablate.run_ablation(config, [], None)
    assert [key for key in work.done if key[1] != "shared"] == [("seed-0", "first")]


def test_a_report_is_written_where_every_arm_failed(config: RunConfig, work: _Work) -> None:
    for seed in ("seed-0", "seed-1"):
        for name in ARMS:
            work.failures[seed, name] = TrainingError(f"{name} of {seed}")
    with pytest.raises(UserError) as raised:
        ablate.run_ablation(config, [], None)
    for seed in ("seed-0", "seed-1"):
        for name in ARMS:
            assert f"{name} of {seed}" in str(raised.value)
    report = json.loads((Path(config.run_dir) / "reports" / "ablation.json").read_text())
    assert set(report["figures"]["f1"]) == {"start"}


def test_ctrl_c_ends_all_of_it(config: RunConfig, work: _Work) -> None:
    work.failures["seed-0", "second"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        ablate.run_ablation(config, [], None)
    assert [key for key in work.done if key[1] != "shared"] == [("seed-0", "first")]
