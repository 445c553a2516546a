"""What a stage cost: its engines by what they held, whatever their number was meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.engine.engine import EngineStats
from pipelines.session.session import Session
from stepwiser.config import RunConfig


class _Pool:
    """Two engines' counters, and engine-seconds that the test sets."""

    def __init__(self) -> None:
        self.held_seconds = 0.0

    async def stats(self) -> list[EngineStats]:
        return [EngineStats(generated_tokens=5, prompt_tokens=3)] * 2

    def shutdown(self) -> None:
        self.held_seconds += 10.0


@pytest.fixture
def session(tmp_path: Path) -> Session:
    config = RunConfig.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "engine": {"gpus": 2.0},
            "learner": {"gpus": 1.0, "workers": 4},
        }
    )
    session = Session(config)
    session.store.open(config)
    return session


def _cost(session: Session, stage: str) -> dict[str, Any]:
    return json.loads((session.store.root / "metrics" / f"cost-{stage}.json").read_text())


def test_engines_count_by_what_they_held(session: Session) -> None:
    pool: Any = _Pool()
    pool.held_seconds = 500.0  # by an earlier stage
    session._pools["main"] = ("key", pool)
    with session.stage("annotate", resumes=True) as usage:
        pool.held_seconds += 3600.0
        session.release("main")
        other: Any = _Pool()
        other.held_seconds = 190.0
        session._pools["main"] = ("key", other)
    assert usage.gpu_hours == pytest.approx(2 * 3800 / 3600)
    assert _cost(session, "annotate")["gpu_hours"] == pytest.approx(usage.gpu_hours)
    with pytest.raises(KeyboardInterrupt), session.stage("annotate", resumes=True):
        other.held_seconds += 1800.0
        raise KeyboardInterrupt
    assert _cost(session, "annotate")["gpu_hours"] == pytest.approx(2 * 5600 / 3600)


def test_other_roles_count_by_plan(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 360.0])
    monkeypatch.setattr("pipelines.monitoring.usage.time.monotonic", lambda: next(times, 360.0))
    with session.stage("train"):
        pass
    assert _cost(session, "train")["gpu_hours"] == pytest.approx(4 * 0.1)
