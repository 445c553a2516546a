"""Scorers as actors: the same scores as in this process, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import ray

from actors.scoring.scorers import StepScorerPool
from stepwiser.errors import UserError
from stepwiser.judging.step_models import ScorerOptions, StepScorer, StepScores
from tests.stepwiser.judging.scorer_models import make_scorer

SOLUTIONS = [
    (f"Problem {i}?", [f"{j} + {i} = {i + j}" for j in range(1 + i % 7)]) for i in range(80)
]


@pytest.mark.slow
def test_scores_survive_a_scorer(ray_local: None, tmp_path: Path) -> None:
    options = ScorerOptions("skywork", str(make_scorer("skywork", tmp_path)), dtype="float32")
    expected = StepScorer(options).score(SOLUTIONS)
    pool = StepScorerPool(options, count=2, cpus=1, gpus=0)
    pool.load()

    async def all_scores(kill: bool) -> list[StepScores]:
        asked = asyncio.gather(*(pool.scores(*solution) for solution in SOLUTIONS))
        if kill:
            await asyncio.sleep(0.01)  # the groups are on their way
            ray.kill(pool._actors[0], no_restart=False)
        return list(await asked)

    for kill in (False, True):
        found = asyncio.run(all_scores(kill))
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.scores == pytest.approx(other.scores, abs=1e-4)
    pool.close()
    wrong = StepScorerPool(ScorerOptions("qwen_prm", str(tmp_path)), count=1, cpus=1, gpus=0)
    with pytest.raises(UserError, match=r"no weights score\.0\.bias"):
        wrong.load()
    wrong.close()
