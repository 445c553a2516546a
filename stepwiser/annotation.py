"""Monte-Carlo annotation of one problem, over any generator (paper section 3.2).

The order of things: sample responses, keep problems whose responses are neither all right nor all
wrong, cut responses into chunks, and estimate for every chunk how often the policy still reaches
the right answer from there. Prefixes are continued as the sampled token ids they are, so that no
re-tokenization can quietly repair a step.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from stepwiser.config.models import AnnotateConfig
from stepwiser.generation import Generator, Sample, Sampling
from stepwiser.problems import AnswerChecker, boxed_answer
from stepwiser.prompts import PromptFormat
from stepwiser.records import ChunkValue, Problem, Trajectory, content_id


@dataclass
class ProblemAnnotation:
    """What came of one problem."""

    trajectories: list[Trajectory] = field(default_factory=list)
    values: list[ChunkValue] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Responses, right, kept, malformed (by reason), tokens, rollouts …, to be summed."""


@dataclass(frozen=True)
class Annotator:
    """Annotates problems with one policy."""

    generator: Generator
    prompts: PromptFormat
    checker: AnswerChecker
    config: AnnotateConfig
    seed: int

    async def annotate(self, problem: Problem) -> ProblemAnnotation:
        """Everything about one problem; a problem outside the difficulty band has no trajectory."""
        result = ProblemAnnotation()
        counts = result.counts
        prompt = self.prompts.policy_ids(problem.question)
        samples = await self.generator.generate(
            prompt,
            Sampling(
                max_tokens=self.config.max_tokens,
                n=self.config.responses,
                temperature=self.config.temperature,
            ),
            affinity=problem.problem_id,
        )
        outcomes = await asyncio.to_thread(self._outcomes, samples, problem.answer)
        right = sum(outcome is True for outcome in outcomes)
        counts.update(
            problems=1,
            responses=len(samples),
            right_responses=right,
            response_tokens=sum(len(s.token_ids) for s in samples),
            truncated_responses=sum(s.truncated for s in samples),
            unverifiable_responses=sum(outcome is None for outcome in outcomes),
        )
        if right == 0 or right == len(samples):
            counts["all_wrong" if right == 0 else "all_right"] += 1
            return result
        counts["mixed_problems"] += 1
        usable = [
            trajectory
            for sample, outcome in zip(samples, outcomes, strict=True)
            if (trajectory := self._trajectory(problem, sample, outcome, right, counts))
        ]
        result.trajectories = self._choose(problem, usable)
        known: dict[tuple[int, ...], asyncio.Task[ChunkValue]] = {}
        valued = await asyncio.gather(
            *(self._follow(prompt, t, problem, known, counts) for t in result.trajectories)
        )
        result.values = [value for values in valued for value in values]
        counts.update(trajectories=len(result.trajectories), chunks=len(result.values))
        return result

    def _outcomes(self, samples: Sequence[Sample], reference: str) -> list[bool | None]:
        return [self.checker.check(boxed_answer(s.text), reference) for s in samples]

    def _trajectory(
        self,
        problem: Problem,
        sample: Sample,
        outcome: bool | None,
        right: int,
        counts: Counter[str],
    ) -> Trajectory | None:
        try:
            steps = self.prompts.split(sample)
            if len(steps.texts) > self.config.max_chunks:
                raise ValueError(f"more than {self.config.max_chunks} chunks")
            if outcome is None:
                raise ValueError("answer could not be verified")
        except ValueError as error:
            counts[f"malformed: {error}"] += 1
            return None
        return Trajectory(
            trajectory_id=content_id(problem.problem_id, *sample.token_ids),
            problem_id=problem.problem_id,
            question=problem.question,
            answer=problem.answer,
            response_ids=list(sample.token_ids),
            chunks=steps.texts,
            chunk_ends=steps.token_ends,
            final_answer=boxed_answer(sample.text),
            correct=bool(outcome),
            problem_successes=right,
            problem_trials=self.config.responses,
        )

    def _choose(self, problem: Problem, usable: Sequence[Trajectory]) -> list[Trajectory]:
        """Distinct responses, wrong and right ones in turn (wrong first) up to the limit.

        Ours: wrong responses carry the negatives, which are scarce and which balancing needs.
        """
        rng = random.Random(f"{self.seed}/{problem.problem_id}")
        distinct = list({t.trajectory_id: t for t in usable}.values())
        rng.shuffle(distinct)
        groups = [[t for t in distinct if t.correct is side] for side in (False, True)]
        limit = self.config.trajectories_per_problem
        chosen: list[Trajectory] = []
        while len(chosen) < limit and any(groups):
            chosen += [group.pop() for group in groups if group]
        return chosen[:limit]

    async def _follow(
        self,
        prompt: list[int],
        trajectory: Trajectory,
        problem: Problem,
        known: dict[tuple[int, ...], asyncio.Task[ChunkValue]],
        counts: Counter[str],
    ) -> list[ChunkValue]:
        """Values along one trajectory, until one falls below `stop_below`."""
        if self.config.stop_below > 0.0:
            values = []
            for i in range(len(trajectory.chunks)):
                values.append(await self._value(prompt, trajectory, i, problem, known, counts))
                if values[-1].mean < self.config.stop_below:
                    break
            return values
        return list(
            await asyncio.gather(
                *(
                    self._value(prompt, trajectory, i, problem, known, counts)
                    for i in range(len(trajectory.chunks))
                )
            )
        )

    async def _value(
        self,
        prompt: list[int],
        trajectory: Trajectory,
        index: int,
        problem: Problem,
        known: dict[tuple[int, ...], asyncio.Task[ChunkValue]],
        counts: Counter[str],
    ) -> ChunkValue:
        """Value of one prefix; the same prefix in two trajectories is rolled out once."""
        head = (trajectory.trajectory_id, problem.problem_id, index)
        if index == len(trajectory.chunks) - 1:
            return ChunkValue(*head, int(trajectory.correct), 1, 0, 0, 0, True)
        prefix = tuple(trajectory.response_ids[: trajectory.chunk_ends[index]])
        task = known.get(prefix)
        if task is None:
            task = asyncio.ensure_future(self._roll_out(prompt, prefix, problem, head))
            known[prefix] = task
            value = await task
            counts.update(
                prefixes=1,
                rollouts=value.trials,
                rollout_tokens=value.generated_tokens,
                truncated_rollouts=value.truncated,
            )
            return value
        shared = await task
        counts["shared_prefixes"] += 1
        return ChunkValue(
            *head, shared.successes, shared.trials, shared.truncated, shared.unverifiable, 0, False
        )

    async def _roll_out(
        self,
        prompt: list[int],
        prefix: tuple[int, ...],
        problem: Problem,
        head: tuple[str, str, int],
    ) -> ChunkValue:
        samples = await self.generator.generate(
            [*prompt, *prefix],
            Sampling(
                max_tokens=max(1, self.config.max_tokens - len(prefix)),
                n=self.config.rollouts,
                temperature=self.config.temperature,
            ),
            affinity=problem.problem_id,
        )
        # The box may straddle the prefix, so the answer is read from the whole response.
        before = self.prompts.decode(prefix)

        def outcomes() -> list[bool | None]:
            answers = [boxed_answer(before + s.text) for s in samples]
            return [self.checker.check(answer, problem.answer) for answer in answers]

        checked = await asyncio.to_thread(outcomes)
        return ChunkValue(
            *head,
            successes=sum(outcome is True for outcome in checked),
            trials=len(samples),
            truncated=sum(s.truncated for s in samples),
            unverifiable=sum(outcome is None for outcome in checked),
            generated_tokens=sum(len(s.token_ids) for s in samples),
            is_outcome=False,
        )
