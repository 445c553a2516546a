"""The simulation of scale: its events are those of simple cases by hand, and its parts saturate."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

# Before the events are imported: to compile them takes longer than all of these runs.
os.environ["NUMBA_DISABLE_JIT"] = "1"

from benchmarks.scale_sim.nodes import Measured
from benchmarks.scale_sim.paced_engine import Pace
from benchmarks.scale_sim.page import table, use_table
from benchmarks.scale_sim.parts import registry_s, route_s
from benchmarks.scale_sim.services import A100_7B, EngineRate, Services, at
from benchmarks.scale_sim.simulation import TAIL, Outcome, bottleneck, efficiency, simulate
from benchmarks.scale_sim.work import LIMIT, RESPONSE_TOKENS, Work, drawn, recorded
from pipelines.annotation.dispatch import MAX_LABELERS
from tests.support.paths import ROOT

del os.environ["NUMBA_DISABLE_JIT"]

NOTHING = {1: 0.0, 1024: 0.0}
FREE = Services(
    submit_s=0.0, answer_s=0.0, sample_s=0.0, route_s=NOTHING, news_s=NOTHING, check_s=0.0,
    new_answers=0.0, registry_s=NOTHING, tick_s=NOTHING, call_s=0.0, called_s=0.0, unit_s=0.0,
    write_s=0.0, daemons_s=0.0, gcs_node_s=0.0, sample_bytes=0.0, put_s=0.0, hop_s=0.0,
)  # fmt: skip
SLOW = EngineRate(slots=4, step_s=0.1, sequence_s=0.05)
RATE = EngineRate(slots=4, step_s=0.001, sequence_s=0.0005)
"""A hundred times as fast: 1,333 tokens/s, and so 6.7 requests a second of 200 tokens."""


def _steady(problems: int, requests: int = 3, samples: int = 4, tokens: int = 50) -> Work:
    lengths = {str(p): [[tokens] * samples] * requests for p in range(problems)}
    return recorded(lengths, unit=2)


def test_a_request_takes_what_it_takes() -> None:
    one = recorded({"a": [[10]]}, unit=1)
    assert simulate(one, SLOW, FREE, 1).seconds == pytest.approx(10 * 0.15)
    # Two at a time: 4 tokens each at 0.2 s, and then 6 more at 0.15 s.
    two = recorded({"a": [[10, 4]]}, unit=1)
    assert simulate(two, SLOW, FREE, 1).seconds == pytest.approx(4 * 0.2 + 6 * 0.15)
    # Five in four places: the fifth begins when the first ends.
    five = recorded({"a": [[2, 10, 10, 10, 3]]}, unit=1)
    seconds = simulate(five, SLOW, FREE, 1).seconds
    assert seconds == pytest.approx(2 * 0.3 + 3 * 0.3 + 5 * 0.25)


def test_one_engine_makes_what_it_can() -> None:
    work = _steady(400, samples=4)
    assert RATE.full == pytest.approx(4 / 0.003)
    assert simulate(work, RATE, FREE, 1).middle_tokens_per_s == pytest.approx(RATE.full, rel=0.02)


def test_delays_come_on_top() -> None:
    one = recorded({"a": [[10], [10]]}, unit=1)
    slow = replace(
        FREE, submit_s=0.3, answer_s=0.7, check_s=0.5, new_answers=1.0, write_s=0.2, put_s=0.1,
        puts=3, hop_s=0.05,
    )  # fmt: skip
    request = 0.3 + 0.05 + 10 * 0.15 + 0.05 + 0.7 + 0.5
    assert simulate(one, SLOW, slow, 1).seconds == pytest.approx(2 * request + 0.2 + 3 * 0.1)


def test_more_engines_make_more_until_a_part_saturates() -> None:
    work = _steady(200, tokens=500)
    free = [simulate(work, RATE, FREE, n) for n in (1, 2, 4, 8)]
    rates = [outcome.tokens_per_s for outcome in free]
    assert rates == sorted(rates)
    assert all(1.001 > efficiency(free[0], outcome) > 0.95 for outcome in free)
    # A labeler that sends five requests in four seconds, for engines that end 5.3 a second.
    slow = replace(FREE, submit_s=0.8, labelers=1)
    held = simulate(work, RATE, slow, 8)
    assert held.tokens_per_s == pytest.approx(1.25 * 4 * 500, rel=0.05)
    assert held.use["labelers"] == pytest.approx(1.0, abs=0.05)
    assert bottleneck(simulate(work, RATE, slow, 1), held) == "labelers"
    assert efficiency(free[0], held) < efficiency(free[0], free[3])


def test_a_head_with_too_few_cores_is_slower_at_everything() -> None:
    work = _steady(300)
    busy = replace(FREE, submit_s=0.05, labelers=8)
    wide, narrow = (simulate(work, RATE, replace(busy, head_cpus=n), 8) for n in (16, 1))
    assert narrow.tokens_per_s < 0.9 * wide.tokens_per_s
    assert narrow.use["cores of the head"] > wide.use["cores of the head"]


def test_long_samples_at_the_end_are_what_is_waited_for() -> None:
    lengths = {str(p): [[50] * 4] * 3 for p in range(60)}
    lengths["last"] = [[8000]]
    work = recorded(lengths, unit=1)
    one, many = (simulate(work, RATE, FREE, n) for n in (1, 8))
    assert many.seconds > 8000 * 0.0015 and bottleneck(one, many) == TAIL


def test_all_is_done_once() -> None:
    work = drawn(9, unit=2, seed=1)
    outcome = simulate(work, replace(A100_7B, slots=64), FREE, 3)
    assert outcome.tokens_per_s * outcome.seconds == pytest.approx(work.tokens)


def test_problems_are_as_the_papers() -> None:
    work = drawn(3000, seed=2)
    first = np.zeros(len(work.samples) - 1, bool)
    first[work.requests[:-1]] = True
    per_request = work.lengths.reshape(-1, 16)
    responses, rollouts = per_request[first], per_request[~first]
    assert responses.mean() == pytest.approx(RESPONSE_TOKENS, rel=0.05)
    assert rollouts.mean() == pytest.approx(385, rel=0.06)
    # Of kept problems sixteen trajectories of 6.8 chunks, the last of which needs no rollout.
    asked = np.diff(work.requests) - 1
    assert (asked > 0).mean() == pytest.approx(2 / 3, abs=0.03)
    assert asked[asked > 0].mean() == pytest.approx(16 * 5.8, rel=0.03)
    assert 0.008 < (work.lengths == LIMIT).mean() < 0.013


def test_an_engine_keeps_its_pace_whoever_looks() -> None:
    coarse, fine = Pace(SLOW, 0.0), Pace(SLOW, 0.0)
    for pace in (coarse, fine):
        for number, tokens in enumerate((2, 10, 10, 10, 3)):
            pace.add(number, tokens)
    ends: dict[int, float] = {}
    for look in range(1, 301):
        ends.update(dict.fromkeys(fine.until(look / 100), look / 100))
    assert ends == pytest.approx({0: 0.6, 4: 1.5, 1: 2.75, 2: 2.75, 3: 2.75}, abs=0.011)
    assert coarse.until(2.7) == [0, 4] and coarse.running == 3 and coarse.waiting == 0
    assert sorted(coarse.until(3.0)) == [1, 2, 3]
    assert coarse.made == pytest.approx(35) == fine.made


def test_costs_between_and_beyond_what_was_measured() -> None:
    known = {1: 1.0, 8: 8.0, 64: 64.0}
    assert [at(known, n) for n in (1, 4, 64, 128)] == [1.0, 4.0, 64.0, 128.0]
    assert at({1: 2.0}, 7) == 2.0


def test_parts_of_the_program_cost_more_with_more_engines() -> None:
    assert 0 < route_s(1, 10) < route_s(128, 10) < 0.1
    assert 0 < registry_s(2) < registry_s(128) < 2.0


def test_what_was_measured_is_written_and_read(tmp_path: Path) -> None:
    known = Measured(FREE, [{"engines": 1, "measured": 10.0, "predicted": 10.5}])
    known.write(tmp_path / "scale.json")
    assert Measured.read(tmp_path / "scale.json") == known
    assert FREE.labelers == MAX_LABELERS


def test_the_page_says_what_was_found() -> None:
    use = dict.fromkeys(
        ("labelers", "checkers", "driver", "registry", "GCS", "cores of the head",
         "network of the head", "storage"), 0.031
    )  # fmt: skip
    one, many = Outcome(1, 7200.0, 10.0, 10.0, use), Outcome(64, 3600.0, 600.0, 630.0, use)
    assert "| 64 | 600 | 1.0 | 0.938 | ≥ 0.9 | 0.984 |" in table([one, many], {64: 0.9})
    assert "| GCS | 3.1% | 3.1% |" in use_table([one, many])


def busy_run(run: Callable[..., Outcome]) -> Outcome:
    """One in which every part has something to do."""
    costs = {
        "submit_s": 0.01, "answer_s": 0.02, "sample_s": 0.001, "check_s": 0.01, "new_answers": 0.1,
        "write_s": 0.05, "put_s": 0.02, "hop_s": 0.001, "labelers": 2,
    }  # fmt: skip
    return run(drawn(6, unit=2, seed=5), replace(A100_7B, slots=32), replace(FREE, **costs), 3)


@pytest.mark.slow
def test_compiled_events_are_the_same() -> None:
    code = (
        "from benchmarks.scale_sim import events\n"
        "from benchmarks.scale_sim.simulation import simulate\n"
        "from tests.benchmarks.test_scale_sim import busy_run\n"
        "assert hasattr(events.advance, 'py_func')\n"
        "print(busy_run(simulate))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(busy_run(simulate))


def test_events_that_are_not_compiled_bring_no_llvm() -> None:
    code = "import sys, benchmarks.scale_sim.events; print('llvmlite' in sys.modules)"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.stdout.strip() == "False", run.stderr
