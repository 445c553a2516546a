"""The measurement of annotation at scale: its stub answers like a policy, its figures add up."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from benchmarks.annotation.scale import (
    CHUNKS_PER_PROBLEM,
    costs,
    farthest_from_first,
    figures,
    measure,
    memory_ratios,
)
from benchmarks.annotation.stub_engine import Policy
from benchmarks.command import CONFIG
from benchmarks.process_monitor import DRIVER, Moment, role
from stepwiser.config import load_config
from stepwiser.data.verifiers import boxed_answer
from stepwiser.prompting.generation import Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.tasks import first_error, load_base_model_dir, make_problems


@pytest.fixture(scope="module")
def prompts() -> PromptFormat:
    return PromptFormat.from_model_dir(str(load_base_model_dir()), load_config(CONFIG).prompts)


def test_the_stub_answers_as_a_policy_would(prompts: PromptFormat) -> None:
    right = 0
    for problem in make_problems(20, seed=3):
        ids = prompts.policy_ids(problem.question)
        samples = Policy().samples(ids, Sampling(max_tokens=120, n=16))
        assert samples == Policy().samples(ids, Sampling(max_tokens=120, n=16))
        answers = [boxed_answer(sample.text) for sample in samples]
        assert answers[0] == problem.answer != answers[1]
        right += answers.count(problem.answer)
        for sample in samples:
            assert prompts.decode(sample.token_ids) == sample.text
            assert sample.token_ids[:-1] == tuple(prompts.encode(sample.text))
            assert len(prompts.split(sample).texts) == len(problem.operations)
    assert 100 < right < 220


def test_the_stub_goes_on_from_a_prefix(prompts: PromptFormat) -> None:
    (problem,) = make_problems(1, seed=4)
    ids = prompts.policy_ids(problem.question)
    good, bad, *_ = Policy().samples(ids, Sampling(max_tokens=120, n=2))
    for sample in (good, bad):
        steps = prompts.split(sample)
        for done, end in enumerate(steps.token_ends[:-1], start=1):
            prefix = sample.token_ids[:end]
            rollouts = Policy().samples([*ids, *prefix], Sampling(max_tokens=90, n=16))
            whole = [(prompts.decode(prefix) + r.text).split("</chunk>")[:-1] for r in rollouts]
            errors = [first_error(problem, chunks) for chunks in whole]
            assert {len(chunks) for chunks in whole} == {len(problem.operations)}
            assert all(error == -1 or error >= done for error in errors)
            assert -1 in errors


def _moments(cpu_per_chunk: float, growth: float) -> list[Moment]:
    """A thousand chunks a second; twice as slow a machine in the second half."""
    moments, spent = [], 0.0
    for second in range(201):
        slow = 2.0 if second > 100 else 1.0
        spent += slow * 1000 * cpu_per_chunk if second else 5.0
        memory = {DRIVER: int(1e6 * (100 + growth * second)), "engine": 50_000_000}
        cpu = {DRIVER: 0.25 * spent, "engine": 0.75 * spent}
        moments.append(Moment(float(second), 1000 * second, cpu, memory, 0.002 * slow))
    return moments


def test_costs_are_compared_by_the_yardstick() -> None:
    by_mark = costs(_moments(cpu_per_chunk=0.001, growth=0.0), 200_000)
    assert list(by_mark) == [10_000, 100_000, 200_000]
    assert by_mark[10_000]["cpu"] == pytest.approx(1000)
    assert by_mark[10_000]["engine"] == pytest.approx(750)
    assert by_mark[200_000]["cpu"] == pytest.approx(2000)
    assert {round(row["yardsticks"], 6) for row in by_mark.values()} == {0.5}
    assert all(row["wall"] == pytest.approx(1000) for row in by_mark.values())


def test_memory_of_the_last_third_against_the_first() -> None:
    ratios = memory_ratios(_moments(cpu_per_chunk=0.001, growth=1.0), 200_000)
    assert ratios["engine"] == 1.0
    # Seconds 11 to 66, and 134 to 200, after 100 MB.
    assert ratios[DRIVER] == pytest.approx((100 + 167) / (100 + 38.5))


def test_figures() -> None:
    assert farthest_from_first([2.0, 2.2, 1.7]) == 0.85
    counts = {"chunks": 200_000, "problems": 16_000, "prefixes": 90_000, "rollouts": 1_440_000}
    found = figures(
        _moments(0.001, 0.0), counts | {"seconds": 200.0, "stub_cpu_seconds": 10.0}, 0.1
    )
    assert found["scale_memory_ratio"] == 1.0
    assert found["scale_chunks_per_s"] == pytest.approx(1000)
    assert found["scale_cost_ratio"] == pytest.approx(1.0) and found["cpu_time_ratio"] == 2.0
    assert found["chunks"] == 200_000 and found["seconds"] == 200.0


def test_roles() -> None:
    assert role(["ray::MonteCarloLabeler.annotate"]) == "MonteCarloLabeler"
    assert role(["/somewhere/gcs_server", "--log_dir=x"]) == "gcs_server"
    assert role(["python", "-u", "log_monitor.py"]) == "log_monitor.py"


def test_two_thousand_chunks_are_each_there_once(ray_local: None, tmp_path: Path) -> None:
    found = measure(tmp_path, 2000, ["annotate.problems_per_unit=4"], Console(quiet=True))
    assert found["chunks"] >= 2000
    values = pq.read_table(tmp_path / "values")
    rows = Counter(
        zip(
            values["trajectory_id"].to_pylist(),
            values["chunk_index"].to_pylist(),
            strict=True,
        )
    )
    assert len(rows) == found["chunks"] and set(rows.values()) == {1}
    trajectories = pq.read_table(tmp_path / "trajectories")
    assert set(values["trajectory_id"].to_pylist()) == set(
        trajectories["trajectory_id"].to_pylist()
    )
    assert len(set(trajectories["problem_id"].to_pylist())) == round(2000 / CHUNKS_PER_PROBLEM)
    assert found["memory_mb"][DRIVER] > 50
