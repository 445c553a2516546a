"""The collector between a real pool and a learner that this test plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.engine.engine import EngineOptions
from actors.pinned import Pinned
from actors.pool.pool import EnginePool
from actors.pool.quarantine import ISOLATION, MAX_ISOLATED_LOSSES
from actors.rollout.collector import CollectorOptions, ExperienceCollector
from stepwiser.config import load_config
from stepwiser.data.records import JudgePrompt
from stepwiser.errors import UserError
from stepwiser.tasks import load_base_model_dir, make_problems
from stepwiser.tasks.arithmetic import solution_chunks
from tests.support.engines import engine_options, running_pool
from tests.support.paths import ROOT
from tests.support.scripted_engine import TouchyEngine

pytestmark = pytest.mark.slow

CONFIG = load_config(ROOT / "configs" / "embedded.yaml")
MODEL = str(load_base_model_dir())
TIMEOUT_S = 300.0
TOO_LONG = 180
"""Tokens of a prompt that leave too little room in a context of 256."""


@pytest.fixture(scope="module")
def pool(ray_local: None) -> Iterator[EnginePool]:
    with running_pool(engine_options(MODEL), 1) as pool:
        yield pool


def _prompts(count: int = 48) -> list[JudgePrompt]:
    rows = []
    for number, problem in enumerate(make_problems(count, seed=5)):
        first = solution_chunks(problem)[0]
        right = number % 2 == 0
        chunk = first if right else first[:-2] + str((int(first[-2]) + 1) % 10) + first[-1]
        rows.append(
            JudgePrompt(
                f"prompt-{number}",
                f"t{number}",
                f"problem-{number}",
                problem.question,
                [],
                chunk,
                0,
                right,
                "abs_q",
                0.5,
                0.5,
                16,
                "train",
            )
        )
    return rows


class _Learner:
    """Calls a collector as the learner does."""

    def __init__(self, pool: EnginePool, prompts: list[JudgePrompt], **train: Any) -> None:
        settings = {
            "steps": 4,
            "prompts_per_step": 8,
            "minibatch_prompts": 8,
            "group_size": 4,
            "max_response_tokens": 90,
            "evaluate_every": None,
            **train,
        }
        options = CollectorOptions(
            model_dir=MODEL,
            prompts=CONFIG.prompts,
            train=CONFIG.train.model_copy(update=settings),
            max_response_tokens=90,
            context_length=256,
            seed=0,
        )
        arguments = Pinned(pool.client()), Pinned(prompts), Pinned([])
        self.collector = ExperienceCollector.remote(options, *arguments)

    def publish(self, version: int) -> dict[str, float]:
        call = self.collector.publish.remote(version, MODEL, TIMEOUT_S)
        return ray.get(call, timeout=TIMEOUT_S)

    def batch(self, step: int) -> Any:
        return ray.get(self.collector.next_batch.remote(step), timeout=TIMEOUT_S)

    def ages(self, step: int) -> set[int]:
        return {step - int(version) for version in self.batch(step).weight_versions}


def test_on_policy_every_sample_has_the_weights_of_its_step(pool: EnginePool) -> None:
    # No fourth step, which would still be sampled while the next test counts requests.
    learner = _Learner(pool, _prompts(), steps=3)
    assert learner.publish(0) == {}
    for step in range(3):
        assert learner.ages(step) == {0}
        with pytest.raises(RuntimeError, match=f"publish version {step + 1} first"):
            learner.batch(step + 1)
        figures = learner.publish(step + 1)
        assert figures["samples"] == 8 * 4
        assert figures["useful_groups"] + figures["flat_groups"] == 8
        assert figures["useful_groups"] / 8 == figures["mixed_groups"]
        assert 0 <= figures["engine_idle"] < 1


def test_the_next_step_is_sampled_while_this_one_is_trained_and_is_one_version_old(
    pool: EnginePool,
) -> None:
    learner = _Learner(pool, _prompts(), staleness=1)
    before = _finished(pool)
    learner.publish(0)
    assert learner.ages(0) == {0}
    _wait(lambda: _finished(pool) == before + 16)  # both steps are answered, one was asked for
    with pytest.raises(RuntimeError, match="publish version 2 first"):
        learner.batch(2)
    # In the middle of step 2: its requests live on with the weights of version 2.
    learner.publish(1)
    assert learner.ages(1) == {1}
    learner.publish(2)
    assert learner.ages(2) <= {0, 1}
    # A learner that has gone back: what was sampled for later is forgotten.
    learner.publish(1)
    assert learner.ages(1) == {0}
    assert learner.publish(2)["samples"] == 8 * 4
    assert learner.ages(2) <= {0, 1}
    assert learner.publish(3) and learner.ages(3) <= {0, 1}
    learner.publish(4)
    with pytest.raises(RuntimeError, match="step 4"):
        learner.batch(4)  # there is no such step


def _finished(pool: EnginePool) -> int:
    return sum(stats.finished_requests for stats in asyncio.run(pool.stats()))


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


def test_flat_groups_are_replaced_up_to_the_cap(pool: EnginePool) -> None:
    kept = _Learner(pool, _prompts(), group_size=2)
    kept.publish(0)
    kept.batch(0)
    once = kept.publish(1)
    assert once["sampling_rounds"] == 1 and once["flat_groups"] > 0
    replaced = _Learner(
        pool, _prompts(), group_size=2, dynamic_sampling=True, max_sampling_rounds=6
    )
    replaced.publish(0)
    batch = replaced.batch(0)
    figures = replaced.publish(1)
    useful = figures["useful_groups"]
    assert figures["sampling_rounds"] > 1 and len(batch) == 2 * useful
    assert useful == 8 or figures["sampling_rounds"] == 6
    # As many as were missing, never more.
    assert useful + figures["flat_groups"] > 8 and useful <= 8
    assert len(set(batch.groups.tolist())) == useful


def test_prompts_that_do_not_fit_are_dropped_and_counted(pool: EnginePool) -> None:
    rows = _prompts(8)
    long = [_longer(row) if number < 2 else row for number, row in enumerate(rows)]
    learner = _Learner(pool, long)
    learner.publish(0)
    batch = learner.batch(0)
    assert max(batch.lengths - batch.response_lengths) < TOO_LONG
    figures = learner.publish(1)
    assert figures["prompts_too_long"] == 2
    assert figures["samples"] == 6 * 4
    hopeless = _Learner(pool, [_longer(row) for row in rows])
    hopeless.publish(0)
    with pytest.raises(UserError, match="all 32 prompts of 4 rounds are too long.*exceed 166"):
        hopeless.batch(0)


def _longer(row: JudgePrompt) -> JudgePrompt:
    return JudgePrompt(**{**vars(row), "history": [row.chunk] * 20})


def test_a_prompt_that_ends_engines_ends_the_step_and_is_named(
    ray_local: None, tmp_path: Path
) -> None:
    log = tmp_path / "answers"
    log.touch()
    options = EngineOptions(model=str(log), max_num_seqs=64)
    rows = _prompts(8)
    rows[3] = JudgePrompt(**{**vars(rows[3]), "history": [rows[3].chunk] * 9})
    pool = EnginePool(options, count=2, build=TouchyEngine, start_timeout_s=TIMEOUT_S)
    try:
        learner = _Learner(pool, rows)
        learner.publish(0)
        with pytest.raises(UserError, match="judge prompt prompt-3 .problem problem-3, chunk 0"):
            learner.batch(0)
        deaths = (tmp_path / "deaths").read_text()
        assert 2 <= len(deaths.splitlines()) <= len(ISOLATION) + MAX_ISOLATED_LOSSES
        learner.publish(0)  # the learner, started again
        with pytest.raises(UserError, match="prompt-3"):
            learner.batch(0)
        assert (tmp_path / "deaths").read_text() == deaths, "no engine was ended for it again"
    finally:
        pool.shutdown()
