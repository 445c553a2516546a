"""Ways to solve with a judge, each on engines: answers, what they cost, how long they took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from pipelines.evaluation.items import steps_of
from pipelines.session.session import Session
from stepwiser.config.models import SolveMethod
from stepwiser.data.answers.boxes import boxed_answer
from stepwiser.data.records import Problem
from stepwiser.data.verifiers import voices
from stepwiser.prompting.generation import Generator, Sample, Sampling
from stepwiser.prompting.thinking import answer_of
from stepwiser.search.beam_search import BeamResult, beam_search
from stepwiser.search.chunk_reset import SearchResult, chunk_reset
from stepwiser.search.comparison import (
    Contender,
    Key,
    MethodRun,
    Solved,
    best_of,
    disjoint,
    majority_of,
    sizes_up_to,
    weighted_of,
)
from stepwiser.search.drafts import Spent
from stepwiser.search.early_stop import EarlyStopResult, GuardedSample, early_stop, settle
from stepwiser.search.policy import ChunkSampler, SearchJudge, Solutions
from stepwiser.search.voting import majority_vote, solution_score

S = TypeVar("S")
T = TypeVar("T")


@dataclass
class Stopwatch:
    """A generator that knows when its last answer came: checking answers is no part of a method."""

    generator: Generator
    last: float = 0.0

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, affinity: str | None = None
    ) -> list[Sample]:
        samples = await self.generator.generate(prompt_ids, sampling, affinity)
        self.last = time.monotonic()
        return samples


@dataclass
class PlainSamples:
    """Samples of every problem, taken in rounds that are timed."""

    session: Session
    policy: ChunkSampler
    problems: list[Problem]
    solutions: list[Solutions] = field(default_factory=list)
    rounds: list[tuple[int, float]] = field(default_factory=list)
    """Samples of a problem and seconds, of each round."""

    def more(self, count: int) -> None:
        """Take so many more of each problem, in one round."""
        prompts, policy = self.policy.prompts, self.policy
        sampling = Sampling(policy.max_tokens, n=count, temperature=policy.temperature)
        watch = Stopwatch(policy.generator)
        began = time.monotonic()
        new = self.session.solutions(
            f"plain sampling, {count} of each",
            watch,
            prompts.policy_ids,
            self.problems,
            sampling,
            prompts.heard,
        )
        self.rounds.append((count, watch.last - began))
        if self.solutions:
            new = [
                Solutions(a.problem, a.samples + b.samples, a.outcomes + b.outcomes)
                for a, b in zip(self.solutions, new, strict=True)
            ]
        self.solutions = new

    def seconds(self, votes: int) -> float | None:
        """Of so many samples of each problem, where a round, or the first two, had as many."""
        for count, seconds in self.rounds:
            if count == votes:
                return seconds
        first = self.rounds[:2]
        if sum(count for count, _ in first) == votes:
            return sum(seconds for _, seconds in first)
        return None


@dataclass
class Solver:
    """One judge and the policy, both on their engines."""

    session: Session
    problems: list[Problem]
    name: str
    """The judge's."""
    policy: ChunkSampler
    judge: SearchJudge
    plain: PlainSamples
    engines: int
    """Of both models together."""

    def over(
        self, title: str, items: Sequence[S], one: Callable[[S], Awaitable[T]]
    ) -> tuple[list[T], float]:
        """What `one` gives for each problem's item, so many at once as are set, and the seconds."""
        gate = asyncio.Semaphore(self.session.config.solve.concurrent_problems)
        with self.session.progress(f"{title}, {self.name}", len(items), "problems") as bar:

            async def gated(item: S) -> T:
                async with gate:
                    found = await one(item)
                bar.update(advance=1)
                return found

            began = time.monotonic()
            return self.session.run(_all(map(gated, items))), time.monotonic() - began

    def run_of(
        self, method: str, size: int, found: Sequence[Sequence[Solved]], seconds: float | None
    ) -> MethodRun:
        at_once = min(self.session.config.solve.concurrent_problems, len(self.problems))
        return MethodRun(method, self.name, size, found, seconds, at_once, self.engines)

    def score(self, scores: Sequence[float]) -> float | None:
        return solution_score(scores, self.session.config.solve.reduction)

    def keys(self, answers: Sequence[Sequence[str | None]]) -> list[Key]:
        """For each problem what its answers are called in a vote."""
        checker = self.session.checker
        return [
            voices(checker, found, problem.question).__getitem__
            for found, problem in zip(answers, self.problems, strict=True)
        ]

    def elected(
        self,
        method: str,
        contenders: Sequence[Sequence[Contender]],
        pick: Callable[[Sequence[Contender], Key], Solved],
        seconds: float | None,
    ) -> Iterator[MethodRun]:
        """A run of every size: of disjoint groups, and of all, which alone were timed."""
        keys = self.keys([[one.answer for one in group] for group in contenders])
        count = len(contenders[0])
        for size in sizes_up_to(count):
            found = [
                [pick(group, key) for group in disjoint(own, size)]
                for own, key in zip(contenders, keys, strict=True)
            ]
            yield self.run_of(method, size, found, seconds if size == count else None)

    @cached_property
    def judged_samples(self) -> tuple[list[list[Contender]], float]:
        """The first plain samples with their scores, and the seconds of writing and judging."""
        count = self.session.config.solve.plain_samples

        async def one(solution: Solutions) -> list[Contender]:
            return await _all(self._judged(solution.problem, s) for s in solution.samples[:count])

        found, seconds = self.over("judging plain samples", self.plain.solutions, one)
        written = self.plain.seconds(count)
        assert written is not None, "they are the first rounds"
        return found, written + seconds

    async def _judged(self, problem: Problem, sample: Sample) -> Contender:
        steps = steps_of(self.policy.prompts, sample)
        answer, tokens = answer_in(sample.text), len(sample.token_ids)
        if steps is None:
            return Contender(answer, None, Spent(tokens, 0, 0))
        verdicts = await _all(
            self.judge.judge(problem, steps[:i], step) for i, step in enumerate(steps)
        )
        score = self.score([verdict.score for verdict in verdicts])
        return Contender(answer, score, Spent(tokens, 0, sum(v.tokens for v in verdicts)))


def answer_in(text: str) -> str | None:
    """The final answer of a solution."""
    return boxed_answer(answer_of(text))


async def _all(works: Iterable[Awaitable[T]]) -> list[T]:
    return list(await asyncio.gather(*works))


def _chunk_reset(solver: Solver) -> Iterator[MethodRun]:
    config = solver.session.config.solve

    async def one(problem: Problem) -> list[SearchResult]:
        return await _all(
            chunk_reset(
                problem,
                solver.policy,
                solver.judge,
                config.samples_per_chunk,
                max_chunks=config.max_chunks,
            )
            for _ in range(config.searches)
        )

    found, seconds = solver.over("chunk-reset", solver.problems, one)
    single = [[Solved(answer_in(r.text), r, forced=r.forced) for r in rs] for rs in found]
    yield solver.run_of("chunk_reset", 1, single, seconds if config.searches == 1 else None)
    contenders = [
        [Contender(answer_in(r.text), solver.score(r.scores), r) for r in rs] for rs in found
    ]
    yield from solver.elected("chunk_reset_majority", contenders, majority_of, seconds)
    yield from solver.elected("chunk_reset_weighted", contenders, weighted_of, seconds)


def _best_of_n(solver: Solver) -> Iterator[MethodRun]:
    contenders, seconds = solver.judged_samples
    yield from solver.elected("best_of_n", contenders, best_of, seconds)


def _weighted_vote(solver: Solver) -> Iterator[MethodRun]:
    contenders, seconds = solver.judged_samples
    yield from solver.elected("weighted_vote", contenders, weighted_of, seconds)


def _beam_search(solver: Solver) -> Iterator[MethodRun]:
    config = solver.session.config.solve
    for beams in config.beams:

        async def one(problem: Problem, beams: int = beams) -> BeamResult:
            return await beam_search(
                problem,
                solver.policy,
                solver.judge,
                beams,
                config.expansions,
                max_chunks=config.max_chunks,
                reduction=config.reduction,
            )

        found, seconds = solver.over(f"beam search of {beams}", solver.problems, one)
        solved = [[Solved(answer_in(result.draft.text), result)] for result in found]
        yield solver.run_of("beam_search", beams, solved, seconds)


def _early_stop(solver: Solver) -> Iterator[MethodRun]:
    config = solver.session.config.solve
    count = config.plain_samples

    async def one(problem: Problem) -> tuple[EarlyStopResult, tuple[GuardedSample, ...]]:
        return await early_stop(
            problem,
            solver.policy,
            solver.judge,
            count,
            negatives=config.negatives,
            max_chunks=config.max_chunks,
            reduction=config.reduction,
        )

    async def groups(item: tuple[Problem, list[Sequence[GuardedSample]]]) -> list[EarlyStopResult]:
        problem, samples = item
        return await _all(
            settle(
                problem,
                solver.policy,
                group,
                max_chunks=config.max_chunks,
                reduction=config.reduction,
            )
            for group in samples
        )

    found, seconds = solver.over(f"early stop of {count}", solver.problems, one)
    for size in sizes_up_to(count):
        if size == count:
            whole = [[result] for result, _ in found]
            yield solver.run_of("early_stop", size, _votes(solver, whole), seconds)
            continue
        parts = [disjoint(samples, size) for _, samples in found]
        items = list(zip(solver.problems, parts, strict=True))
        settled, _ = solver.over(f"early stop of {size}", items, groups)
        yield solver.run_of("early_stop", size, _votes(solver, settled), None)


def _votes(solver: Solver, results: Sequence[Sequence[EarlyStopResult]]) -> list[list[Solved]]:
    answers = [[[answer_in(d.text) for d in r.voters] for r in found] for found in results]
    keys = solver.keys([[one for group in found for one in group] for found in answers])
    return [
        [
            Solved(majority_vote(own, key), result, sum(one is not None for one in own))
            for result, own in zip(found, groups, strict=True)
        ]
        for found, groups, key in zip(results, answers, keys, strict=True)
    ]


METHODS: Mapping[SolveMethod, Callable[[Solver], Iterator[MethodRun]]] = {
    "chunk_reset": _chunk_reset,
    "best_of_n": _best_of_n,
    "weighted_vote": _weighted_vote,
    "beam_search": _beam_search,
    "early_stop": _early_stop,
}
"""The runs of a method with one judge, of every size."""
