"""MonteCarloLabeler: a unit of problems in, its trajectories and values in the run.

The engines are not its own: it holds a client of the long-lived pool. It writes a unit itself, and
whole: its tables first, then the summary whose presence says that the unit is done. So rows never
pass through the driver, and a death at any moment leaves a unit either finished or to be done.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import ray
from ray.exceptions import RayTaskError

from actors.engine.engine import EngineFailure
from actors.pool.client import EnginesEnded, EnginesLost, PoolClient
from stepwiser.annotation.admission import COLD_START
from stepwiser.annotation.annotator import Annotator, ProblemAnnotation
from stepwiser.annotation.outlook import WorkSeen
from stepwiser.annotation.stopping import Question, StoppingPlan
from stepwiser.config import PromptConfig
from stepwiser.config.annotation import AnnotateConfig
from stepwiser.data.records import ChunkValue, Problem, Trajectory
from stepwiser.data.verifiers import make_checker
from stepwiser.errors import UserError
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.run.store import RunStore
from stepwiser.run.units import (
    BY,
    REPEATS,
    count_labels,
    is_finished,
    read_summary,
    write_unit,
)

MAX_TRIES = 3
"""Tries of one problem before it is rejected with its reason."""


class _Refused(Exception):
    """A problem that is not to be tried."""


@dataclass(frozen=True)
class LabelerOptions:
    """What every labeler of a run needs."""

    model_dir: str
    prompts: PromptConfig
    annotate: AnnotateConfig
    stopping: StoppingPlan
    label: Question
    """Whose labels are counted while annotation goes on."""
    checker: str
    check_timeout_s: float
    seed: int
    trust_remote_code: bool = False
    start: str = ""
    """Which start of the program this is, as the units' leases call it; empty without leases."""


ELSEWHERE = "done elsewhere"
"""In the counts of a unit: another start was faster, and they are of its rows."""


# More units than are ever under way at a time, or `allow` would have to wait for one to end.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3, max_concurrency=10_000)
class MonteCarloLabeler:
    """Annotates units; several are under way at once, since it waits more than it works."""

    def __init__(self, options: LabelerOptions, root: str) -> None:
        self._options = options
        self._store = RunStore(root)
        self._prompts = PromptFormat.from_model_dir(
            options.model_dir, options.prompts, options.trust_remote_code
        )
        self._checker = make_checker(options.checker, options.check_timeout_s)
        self._annotator: Annotator | None = None
        self._gate = _Gate(COLD_START)

    async def allow(self, problems: int) -> tuple[int, int, WorkSeen]:
        """Set how many problems may be under way; returns how many are, how many with those that
        wait, and what all since this process began have come to."""
        self._gate.open(problems)
        seen = WorkSeen(**self._annotator.seen) if self._annotator else WorkSeen()
        return self._gate.inside, self._gate.inside + self._gate.waiting, seen

    async def annotate(
        self,
        unit: str,
        problems: Sequence[Problem],
        pool: PoolClient,
        refused: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, int]:
        """Annotate and write one unit; returns its counts.

        ``refused``: problems (by id) that are rejected without being tried, with the reasons.

        The pool comes with every unit, so that a labeler that was restarted gets it again: Ray
        does not keep actor handles among the arguments of a constructor alive for a restart, and
        says so on the terminal. The first copy serves all units, as it is the one that knows the
        load of the engines.

        A problem that keeps failing is listed with its reason in the unit's summary; it is neither
        scored nor does it hold up the others. A unit that cannot be written raises UserError, and
        one that no engine is left for EnginesLost.
        """
        started = time.time()
        # In threads: a store that is far away must not hold up what engines have answered.
        if await asyncio.to_thread(is_finished, self._store, unit):
            return await asyncio.to_thread(self._counts, unit)
        outcomes = await asyncio.gather(
            *(self._try(problem, pool, refused.get(problem.problem_id)) for problem in problems)
        )
        return await asyncio.to_thread(self._write, unit, problems, outcomes, started)

    def _counts(self, unit: str) -> dict[str, int]:
        summary = read_summary(self._store, unit)
        elsewhere = bool(self._options.start) and summary.get(BY) != self._options.start
        return {**summary["counts"], **({ELSEWHERE: 1} if elsewhere else {})}

    def _write(
        self,
        unit: str,
        problems: Sequence[Problem],
        outcomes: Sequence[ProblemAnnotation | Exception],
        started: float,
    ) -> dict[str, int]:
        if is_finished(self._store, unit):
            # By the process before this one, which died before it could say so, or by what is left
            # of a driver that was killed: finished rows are never touched again.
            return self._counts(unit)
        counts: Counter[str] = Counter()
        rejects = []
        trajectories: list[Trajectory] = []
        values: list[ChunkValue] = []
        repeats: list[ChunkValue] = []
        for problem, outcome in zip(problems, outcomes, strict=True):
            if isinstance(outcome, ProblemAnnotation):
                counts += outcome.counts
                trajectories += outcome.trajectories
                values += outcome.values
                repeats += outcome.repeats
            else:
                counts["rejected"] += 1
                rejects.append({"problem_id": problem.problem_id, "reason": _reason(outcome)})
        counts += count_labels(self._options.label, trajectories, values)
        tables = {
            "trajectories": Trajectory.to_table(trajectories),
            "values": ChunkValue.to_table(values),
        }
        if repeats:
            tables[REPEATS] = ChunkValue.to_table(repeats)
        summary = {"counts": counts, "rejects": rejects, "seconds": time.time() - started}
        if self._options.start:
            summary[BY] = self._options.start
        first = write_unit(self._store, unit, tables, summary)
        return dict(counts) if first else self._counts(unit)

    async def try_out(self, problem: Problem, pool: PoolClient) -> None:
        """Annotate a problem for nothing but to see whether this process outlives it."""
        await self._try(problem, pool)

    async def _try(
        self, problem: Problem, pool: PoolClient, refused: str | None = None
    ) -> ProblemAnnotation | Exception:
        """The annotation, or what kept failing. Raises EnginesLost, which is no problem's fault."""
        if refused is not None:
            return _Refused(refused)
        if self._annotator is None:
            self._annotator = Annotator(
                generator=pool,
                prompts=self._prompts,
                checker=self._checker,
                config=self._options.annotate,
                stopping=self._options.stopping,
                seed=self._options.seed,
            )
        failure: Exception = RuntimeError("never tried")
        async with self._gate:
            for _ in range(MAX_TRIES):
                try:
                    return await self._annotator.annotate(problem)
                except EnginesLost:
                    raise
                except Exception as error:  # recorded with its reason, never scored
                    failure = error
                    if isinstance(error, UserError | EnginesEnded):
                        break  # bad input stays bad, and engines are dear
        return failure


def _reason(failure: Exception) -> str:
    """In one line, the same for the same failure elsewhere; Ray's own words have process ids."""
    cause = failure.cause if isinstance(failure, RayTaskError) else failure
    known = isinstance(cause, UserError | EngineFailure | _Refused)
    return str(cause) if known else f"{type(cause).__name__}: {cause}"


class _Gate:
    """Lets a number of problems through at a time, first come first; the number may change."""

    def __init__(self, limit: int) -> None:
        self.inside = 0
        self._limit = limit
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def open(self, limit: int) -> None:
        self._limit = limit
        while self._queue and self.inside < self._limit:
            turn = self._queue.popleft()
            if not turn.done():
                self.inside += 1
                turn.set_result(None)

    async def __aenter__(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self.open(self._limit)
        await turn

    async def __aexit__(self, *error: object) -> None:
        self.inside -= 1
        self.open(self._limit)
