"""A labeler's units: finished ones are never touched again, failures are said in one line."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.pool.client import EnginesEnded
from actors.rollout.labeler import LabelerOptions, MonteCarloLabeler
from stepwiser.annotation.stopping import Question, stopping_plan
from stepwiser.config import load_config
from stepwiser.data.records import Problem
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.run.store import RunStore
from stepwiser.run.units import read_summary
from stepwiser.tasks import load_base_model_dir
from tests.stepwiser.run.annotated_run import COUNTS, UNITS, write_run
from tests.support.paths import ROOT

Labeler = MonteCarloLabeler.__ray_metadata__.modified_class
PROBLEMS = [Problem(f"p{i}", f"Tom has {i}1 pens. buys 7. how many?", "7") for i in range(3)]


class _Generator:
    """Does as it is told; there are no engines here."""

    def __init__(self, act: Any) -> None:
        self.act, self.calls = act, 0

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        self.calls += 1
        self.act()
        return [Sample((5, 6), "5", "stop")] * sampling.n


@pytest.fixture
def labeler(tmp_path: Path) -> Any:
    config = load_config(ROOT / "configs" / "embedded.yaml")
    plan = stopping_plan(config.annotate, config.label)
    options = LabelerOptions(
        str(load_base_model_dir()), config.prompts, config.annotate, plan,
        Question.of(config.label), "exact", 5.0, 0,
    )  # fmt: skip
    return Labeler(options, str(tmp_path))


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*") if p.is_file()}


def test_a_finished_unit_is_left_as_it_is(labeler: Any, tmp_path: Path) -> None:
    """A labeler may die between its last write and its answer; Ray then asks the next one again."""
    write_run(tmp_path)
    before = _files(tmp_path)
    generator = _Generator(lambda: None)
    assert asyncio.run(labeler.annotate(UNITS[0], PROBLEMS, generator)) == COUNTS
    assert _files(tmp_path) == before and not generator.calls


def test_a_unit_that_somebody_else_finishes_meanwhile_is_his(labeler: Any, tmp_path: Path) -> None:
    """What is left of a killed driver may still be at work while the next one begins."""
    generator = _Generator(lambda: write_run(tmp_path) if not (tmp_path / "units").exists() else 0)
    assert asyncio.run(labeler.annotate(UNITS[0], PROBLEMS, generator)) == COUNTS
    assert read_summary(RunStore(tmp_path), UNITS[0])["counts"] == COUNTS
    assert generator.calls == 3


def test_what_keeps_failing_is_rejected_with_one_line(labeler: Any, tmp_path: Path) -> None:
    outcomes = iter([ZeroDivisionError("division by zero")] * 3 + [EnginesEnded("ended 5 engines")])

    def fail() -> None:
        raise next(outcomes)

    refused = {"p2": "the labeler's process ends"}
    generator = _Generator(fail)
    labeler._gate.open(1)
    counts = asyncio.run(labeler.annotate("u", PROBLEMS, generator, refused))
    assert counts["rejected"] == 3 and generator.calls == 4
    assert read_summary(RunStore(tmp_path), "u")["rejects"] == [
        {"problem_id": "p0", "reason": "ZeroDivisionError: division by zero"},
        {"problem_id": "p1", "reason": "ended 5 engines"},
        {"problem_id": "p2", "reason": "the labeler's process ends"},
    ]
