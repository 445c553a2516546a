"""StepScorerPool: step scorers on the cluster, and who asks them what.

Whoever awaits scores at the same time is asked together: requests are sorted by length and go out
in groups, which a scorer cuts into batches of like lengths. A scorer holds nothing that it could
lose, so a group whose scorer died is scored again by the one that Ray starts in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from stepwiser.errors import UserError
from stepwiser.judging.step_models import ScorerOptions, Solution, StepScorer, StepScores

GROUP = 32
"""Solutions that a scorer gets at once."""
MAX_RESTARTS = 3


@ray.remote
class StepScorerActor:
    """One loaded scorer; it loads with the first call, so that what is wrong with it is said."""

    def __init__(self, options: ScorerOptions) -> None:
        self._options = options
        self._scorer: StepScorer | None = None

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        if self._scorer is None:
            self._scorer = StepScorer(self._options)
        return self._scorer.score(solutions)


class StepScorerPool:
    """Scorers of one model; close it to give their place back.

    A scorer gets one GPU or none: a model has to fit it.
    """

    def __init__(
        self, options: ScorerOptions, *, count: int, cpus: float, gpus: float, threads: int = 1
    ) -> None:
        """``threads``: of each, on the CPU."""
        self._actors = [
            StepScorerActor.options(
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=MAX_RESTARTS,
                max_task_retries=MAX_RESTARTS,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
            ).remote(options)
            for _ in range(count)
        ]
        self._waiting: list[tuple[Solution, asyncio.Future[StepScores]]] = []
        self._turn = 0
        self._sending: set[asyncio.Task[None]] = set()

    def load(self) -> None:
        """Return once every scorer is loaded. Raises UserError where the model is of no use."""
        for call in [actor.score.remote([]) for actor in self._actors]:
            try:
                ray.get(call)
            except RayTaskError as error:
                raise (error.cause if isinstance(error.cause, UserError) else error) from None

    async def scores(self, problem: str, steps: Sequence[str]) -> StepScores:
        """Scores of a solution's steps. Raises UserError where the model cannot read them."""
        future: asyncio.Future[StepScores] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            # At the end of this turn of the loop everybody who asks now has asked.
            asyncio.get_running_loop().call_soon(self._send)
        self._waiting.append(((problem, list(steps)), future))
        return await future

    def close(self) -> None:
        """End the scorers."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        waiting.sort(key=lambda request: -_length(request[0]))
        size = max(1, min(GROUP, -(-len(waiting) // len(self._actors))))
        for start in range(0, len(waiting), size):
            task = asyncio.ensure_future(self._ask(waiting[start : start + size]))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _ask(self, group: list[tuple[Solution, asyncio.Future[StepScores]]]) -> None:
        actor = self._actors[self._turn % len(self._actors)]
        self._turn += 1
        try:
            answers: Any = await actor.score.remote([solution for solution, _ in group])
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, UserError) else error
            _fail(group, cause)
        except Exception as error:  # a scorer that is lost: whoever awaits it has to know
            _fail(group, error)
        else:
            for (_, future), answer in zip(group, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


def _fail(group: list[tuple[Solution, asyncio.Future[StepScores]]], error: Exception) -> None:
    for _, future in group:
        if not future.done():
            future.set_exception(error)


def _length(solution: Solution) -> int:
    problem, steps = solution
    return len(problem) + sum(len(step) for step in steps)
