"""When a training counts as finished: kills between a model and its figures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.learner.sft import RESULT_FILE, SFTJob, _Job, _Progress
from pipelines.session.session import Session
from pipelines.stages import train
from pipelines.training import baselines
from stepwiser.config import RunConfig
from stepwiser.training.schedule import LearningRate

JUDGE = {
    "steps": 3,
    "reward_first": 0.1,
    "reward_last": 0.2,
    "accuracy_positive_last": 0.3,
    "accuracy_negative_last": 0.4,
    "response_length_first": 5.0,
    "response_length_last": 6.0,
    "trained_tokens": 70,
}
DISCRIMINATIVE = {"steps": 2, "loss_last": 0.5, "trained_tokens": 30}


def _session(folder: Path, **changes: Any) -> Session:
    config = RunConfig.model_validate({"run_dir": str(folder), **changes})
    session = Session(config)
    session.store.open(config)
    return session


def _put_model(session: Session, name: str) -> None:
    folder = session.store.model_dir(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which judges were trained; the trainings themselves need engines and are tested elsewhere."""
    made: list[str] = []

    def stands_in(name: str, figures: dict[str, Any]) -> Any:
        def training(session: Session) -> dict[str, Any]:
            made.append(name)
            _put_model(session, name)
            return dict(figures)

        return training

    monkeypatch.setattr(train, "_train_judge", stands_in(train.JUDGE, JUDGE))
    other = stands_in(train.DISCRIMINATIVE, DISCRIMINATIVE)
    monkeypatch.setattr(train, "train_discriminative", other)
    monkeypatch.setattr(train, "_settle_live", lambda session: made.append("settle"))
    return made


@pytest.mark.parametrize("left", [None, {}], ids=["no figures", "empty figures"])
def test_a_judge_without_figures_is_gone_on_with(
    tmp_path: Path, calls: list[str], left: dict[str, Any] | None
) -> None:
    session = _session(tmp_path, discriminative={"enabled": False})
    _put_model(session, train.JUDGE)
    if left is not None:
        session.store.write_metrics("train", left)
    assert train.run(session) == JUDGE
    assert session.store.read_metrics("train") == JUDGE
    assert train.run(session) == JUDGE
    assert calls == [train.JUDGE], "and then it is finished"


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (JUDGE, [train.DISCRIMINATIVE]),
        ({"discriminative": DISCRIMINATIVE}, [train.JUDGE]),
        (JUDGE | {"discriminative": DISCRIMINATIVE}, []),
    ],
)
def test_of_two_judges_only_the_one_without_figures(
    tmp_path: Path, calls: list[str], figures: dict[str, Any], expected: list[str]
) -> None:
    session = _session(tmp_path)
    for name in (train.JUDGE, train.DISCRIMINATIVE):
        _put_model(session, name)
    session.store.write_metrics("train", figures)
    both = JUDGE | {"discriminative": DISCRIMINATIVE}
    assert train.run(session) == both
    assert calls == expected
    assert session.store.read_metrics("train") == both


def test_a_discriminative_judge_alone_has_no_other_figures(
    tmp_path: Path, calls: list[str]
) -> None:
    session = _session(tmp_path, train={"method": "discriminative"})
    _put_model(session, train.DISCRIMINATIVE)
    assert train.run(session) == {"discriminative": DISCRIMINATIVE}
    assert train.run(session) == {"discriminative": DISCRIMINATIVE}
    assert calls == [train.DISCRIMINATIVE]


def test_a_live_training_is_not_finished_without_its_labels(
    tmp_path: Path, calls: list[str]
) -> None:
    session = _session(tmp_path, train={"live": True}, discriminative={"enabled": False})
    _put_model(session, train.JUDGE)
    session.store.write_metrics("train", JUDGE)
    train.run(session)
    assert calls == ["settle"]
    session.store.write_metrics("label", {"rule": "rel_effective"})
    train.run(session)
    assert calls == ["settle"]


def test_a_round_of_rejection_sampling_without_its_result_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = _session(
        tmp_path, judge_model=str(tmp_path), train={"method": "rs_ft"}, rejection={"rounds": 1}
    )
    monkeypatch.setattr(baselines, "judge_start", lambda session: "start")
    _put_model(session, baselines.JUDGE)
    sampled = {
        "reward": 0.5,
        "accuracy_positive": 0.5,
        "accuracy_negative": 0.5,
        "share_no_verdict": 0.0,
        "response_length": 4.0,
    }
    rounds = []

    def tune(session: Session, jobs: list[SFTJob]) -> None:
        rounds.append(jobs[0].name)
        result = {"steps": 4, "trained_tokens": 9}
        (Path(jobs[0].output_dir) / RESULT_FILE).write_text(json.dumps(result))

    monkeypatch.setattr(baselines, "_right_judgements", lambda *_: ("examples", sampled))
    monkeypatch.setattr(baselines, "run_sft_jobs", tune)
    for _ in range(2):
        assert baselines.train_rejection(session)["steps"] == 4
    assert rounds == [baselines.JUDGE]


class _Kill(BaseException):
    pass


@pytest.mark.parametrize("best", [None, 0.25], ids=["last weights", "best weights"])
def test_a_fine_tuned_model_appears_together_with_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: float | None
) -> None:
    output, best_dir = tmp_path / "model", tmp_path / "model.best"

    def export(directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text("{}")

    job = object.__new__(_Job)  # its engine would need a worker group
    job._job = SFTJob(
        "sft", "base", str(output), "examples", LearningRate(1e-3), 4, 5, 1, 0.0, seed=0
    )
    job._output, job._best_dir = output, best_dir
    job._worker = SimpleNamespace(rank=0, export=export)  # type: ignore[assignment]
    progress = _Progress("jobs", step=5, best=best, losses=(0.5, 0.7), trained_tokens=40)
    if best is not None:
        export(best_dir)
    write_text = Path.write_text

    def killed(path: Path, *rest: Any, **named: Any) -> int:
        if path.name == RESULT_FILE:
            raise _Kill
        return write_text(path, *rest, **named)

    with monkeypatch.context() as patch, pytest.raises(_Kill):
        patch.setattr(Path, "write_text", killed)
        job._finish(progress)
    assert not output.exists()
    # Done again from its last checkpoint, and once more with the model under its name already.
    for _ in range(2):
        job._finish(progress)
        result = json.loads((output / RESULT_FILE).read_text())
        assert (result["steps"], result["loss"]) == (5, pytest.approx(0.6))
        assert (output / "config.json").is_file() and not best_dir.exists()
