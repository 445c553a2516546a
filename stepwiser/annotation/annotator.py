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
from dataclasses import dataclass, field, replace

from stepwiser.annotation.judge_prompts import is_repeated
from stepwiser.annotation.prefixes import Prefix, PrefixTable, Rollouts
from stepwiser.annotation.stopping import StoppingPlan, annotated, requests
from stepwiser.annotation.values import RolloutCounts, ValueEstimate
from stepwiser.config.annotation import AnnotateConfig
from stepwiser.data.imported import ImportedProblem, imported_trajectories
from stepwiser.data.records import Q0, ChunkValue, Problem, Trajectory, content_id
from stepwiser.data.verifiers import AnswerChecker, boxed_answer, check_all
from stepwiser.prompting.generation import Generator, Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.prompting.thinking import answer_of, is_unfinished


@dataclass
class ProblemAnnotation:
    """What came of one problem."""

    trajectories: list[Trajectory] = field(default_factory=list)
    values: list[ChunkValue] = field(default_factory=list)
    repeats: list[ChunkValue] = field(default_factory=list)
    """The same values once more, from rollouts of their own, where they are repeated; Q_0 has the
    chunk index `Q0`."""
    counts: Counter[str] = field(default_factory=Counter)
    """Responses, right, kept, malformed (by reason), tokens, rollouts …, to be summed."""


@dataclass(frozen=True)
class _Response:
    """A sample that may become a trajectory."""

    sample: Sample
    texts: list[str]
    ends: list[int]
    """Of the chunks, in characters."""
    correct: bool


@dataclass(frozen=True)
class Annotator:
    """Annotates problems with one policy."""

    generator: Generator
    prompts: PromptFormat
    checker: AnswerChecker
    config: AnnotateConfig
    stopping: StoppingPlan
    seed: int
    seen: Counter[str] = field(default_factory=Counter)
    """Fields of `WorkSeen`, over all problems so far."""

    async def annotate(self, problem: Problem) -> ProblemAnnotation:
        """Everything about one problem; outside the difficulty band it has no trajectory, unless
        some were given."""
        result = ProblemAnnotation()
        counts = result.counts
        prompt = self.prompts.policy_ids(problem.question)
        samples, outcomes = await self._respond(prompt, problem)
        self.seen["problems"] += 1
        right = sum(outcome is True for outcome in outcomes)
        counts.update(
            problems=1,
            responses=len(samples),
            right_responses=right,
            response_tokens=sum(len(s.token_ids) for s in samples),
            truncated_responses=sum(s.truncated for s in samples),
            unverifiable_responses=sum(outcome is None for outcome in outcomes),
        )
        if unfinished := sum(is_unfinished(sample.text) for sample in samples):
            counts["unfinished_thinking"] += unfinished
        # One that could not be checked is no wrong one.
        mixed = right > 0 and False in outcomes
        checked = len(outcomes) - outcomes.count(None)
        if not checked:
            counts["unverifiable_problems"] += 1
            return result
        counts["mixed_problems" if mixed else "all_right" if right else "all_wrong"] += 1
        if isinstance(problem, ImportedProblem):
            result.trajectories = await asyncio.to_thread(
                imported_trajectories,
                problem,
                self.prompts,
                self.checker,
                self.config,
                right,
                checked,
                counts,
            )
        elif mixed:
            usable = self._usable(samples, outcomes, counts)
            start = ValueEstimate(right, checked)
            result.trajectories = self._choose(problem, usable, start, counts)
        else:
            return result
        prefixes = PrefixTable(result.trajectories)
        repeated = is_repeated(problem.problem_id, self.config.repeat_share, self.seed)
        self.seen["prefixes"] += len(prefixes.ids) * (2 if repeated else 1)
        rolled = await self._roll_out(prompt, problem, prefixes)
        valued = [t for t in range(len(prefixes.of)) if not self._is_lost(prefixes, t, rolled)]
        if lost := len(prefixes.of) - len(valued):
            counts["malformed: no rollout of a chunk could be verified"] += lost
        result.trajectories = [prefixes.trajectories[t] for t in valued]
        result.values = self._values(prefixes, valued, rolled, counts)
        counts.update(trajectories=len(result.trajectories), chunks=len(result.values))
        if valued and repeated:
            result.repeats = await self._repeat(prompt, problem, result.trajectories, counts)
        return result

    async def _respond(
        self, prompt: list[int], problem: Problem
    ) -> tuple[list[Sample], list[bool | None]]:
        """Responses of the policy, and whether each is right; None where that cannot be said."""
        samples = await self.generator.generate(
            prompt,
            Sampling(
                max_tokens=self.config.max_tokens,
                n=self.config.responses,
                temperature=self.config.temperature,
            ),
            affinity=problem.problem_id,
        )
        samples = self.prompts.heard(samples)
        tokens = sum(len(sample.token_ids) for sample in samples)
        self.seen.update(responses=len(samples), response_tokens=tokens)
        answers = [boxed_answer(answer_of(sample.text)) for sample in samples]
        return samples, await check_all(self.checker, answers, problem.answer, problem.question)

    async def _repeat(
        self,
        prompt: list[int],
        problem: Problem,
        trajectories: Sequence[Trajectory],
        counts: Counter[str],
    ) -> list[ChunkValue]:
        """Values of the same chunks from new responses and rollouts; none where no response can be
        checked this time. What they cost is counted apart."""
        samples, outcomes = await self._respond(prompt, problem)
        right, checked = outcomes.count(True), len(outcomes) - outcomes.count(None)
        counts["repeat_tokens"] += sum(len(sample.token_ids) for sample in samples)
        if not checked:
            return []
        prefixes = PrefixTable(
            [replace(t, problem_successes=right, problem_trials=checked) for t in trajectories]
        )
        rolled = await self._roll_out(prompt, problem, prefixes)
        valued = [t for t in range(len(prefixes.of)) if not self._is_lost(prefixes, t, rolled)]
        made: Counter[str] = Counter()
        rows = self._values(prefixes, valued, rolled, made)
        start = Rollouts(right, checked, 0, 0, 0, right, checked)
        for t in valued:
            head = (prefixes.trajectories[t].trajectory_id, problem.problem_id, Q0)
            rows.append(replace(self._row(head, start, shared=True), planned=checked))
        counts.update(repeat_tokens=made["rollout_tokens"], repeated_chunks=len(rows) - len(valued))
        return rows

    def _usable(
        self, samples: Sequence[Sample], outcomes: Sequence[bool | None], counts: Counter[str]
    ) -> list[_Response]:
        """Distinct well-formed responses; others are counted by reason."""
        usable: dict[Prefix, _Response] = {}
        for sample, outcome in zip(samples, outcomes, strict=True):
            try:
                texts, ends = self.prompts.split_text(sample)
                if len(texts) > self.config.max_chunks:
                    raise ValueError(f"more than {self.config.max_chunks} chunks")
                if outcome is None:
                    raise ValueError("answer could not be verified")
            except ValueError as error:
                counts[f"malformed: {error}"] += 1
            else:
                usable[sample.token_ids] = _Response(sample, texts, ends, outcome)
        return list(usable.values())

    def _choose(
        self, problem: Problem, usable: list[_Response], start: ValueEstimate, counts: Counter[str]
    ) -> list[Trajectory]:
        """Wrong and right responses in turn (wrong first) up to the limit. ``start``: their Q_0.

        Ours: wrong responses carry the negatives, which are scarce and which balancing needs.
        """
        random.Random(f"{self.seed}/{problem.problem_id}").shuffle(usable)
        groups = [[r for r in usable if r.correct is side] for side in (False, True)]
        chosen: list[Trajectory] = []
        while any(groups):
            for group in groups:
                if len(chosen) == self.config.trajectories_per_problem:
                    return chosen
                if group:
                    try:
                        chosen.append(self._trajectory(problem, group.pop(), start))
                    except ValueError as error:
                        counts[f"malformed: {error}"] += 1
        return chosen

    def _trajectory(
        self, problem: Problem, response: _Response, start: ValueEstimate
    ) -> Trajectory:
        sample = response.sample
        return Trajectory(
            trajectory_id=content_id(problem.problem_id, *sample.token_ids),
            problem_id=problem.problem_id,
            question=problem.question,
            answer=problem.answer,
            response_ids=list(sample.token_ids),
            chunks=response.texts,
            # Only here: the tokens of a step take longer to find than all else about a response.
            chunk_ends=self.prompts.token_ends(sample, response.ends),
            final_answer=boxed_answer(answer_of(sample.text)),
            correct=response.correct,
            problem_successes=start.successes,
            problem_trials=start.trials,
        )

    async def _roll_out(
        self, prompt: list[int], problem: Problem, prefixes: PrefixTable
    ) -> list[Rollouts | None]:
        """Completions of every prefix, wave by wave, until every trajectory has what it needs.

        A prefix that several trajectories share is rolled out once, for whoever asks for more.
        Whenever a wave comes in, the trajectories that it concerns are looked at again; it does
        not wait for the other waves of the problem. None: no trajectory got that far.
        """
        rolled: list[Rollouts | None] = [None] * len(prefixes.ids)
        running: dict[asyncio.Task[Rollouts], int] = {}
        concerned = set(range(len(prefixes.trajectories)))
        try:
            while concerned or running:
                wanted: Counter[int] = Counter()
                busy = set(running.values())
                for t in sorted(concerned):
                    if self._is_lost(prefixes, t, rolled):
                        continue
                    keys = prefixes.of[t]
                    in_flight = {i for i, key in enumerate(keys, 1) if key in busy}
                    path = self._path(prefixes, t, rolled)
                    for i, more in requests(self.stopping, path, in_flight).items():
                        wanted[keys[i - 1]] = max(more, wanted[keys[i - 1]])
                for key, more in wanted.items():
                    wave = self._wave(prompt, prefixes.ids[key], problem, more)
                    running[asyncio.create_task(wave)] = key
                concerned = set()
                if running:
                    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        key = running.pop(task)
                        earlier = rolled[key]
                        rolled[key] = earlier + task.result() if earlier else task.result()
                        concerned |= prefixes.users(key)
        finally:
            for task in running:
                task.cancel()
        made = sum(r.trials + r.unverifiable for r in rolled if r)
        self.seen.update(settled_prefixes=len(prefixes.ids), settled_rollouts=made)
        return rolled

    def _is_lost(
        self, prefixes: PrefixTable, trajectory: int, rolled: Sequence[Rollouts | None]
    ) -> bool:
        """Whether some prefix has no value, since none of its completions could be checked."""
        made = (rolled[key] for key in prefixes.of[trajectory])
        return any(r is not None and r.counted(self.stopping.planned) is None for r in made)

    def _path(
        self, prefixes: PrefixTable, trajectory: int, rolled: Sequence[Rollouts | None]
    ) -> list[RolloutCounts]:
        """Q_0 … Q_n of one trajectory that is not lost, as they stand."""
        row = prefixes.trajectories[trajectory]
        planned = self.stopping.planned
        made = [rolled[key] for key in prefixes.of[trajectory]]
        unknown = RolloutCounts(0, 0, planned)
        return [
            RolloutCounts(row.problem_successes, row.problem_trials, row.problem_trials),
            *((r.counted(planned) if r else None) or unknown for r in made),
            RolloutCounts(int(row.correct), 1, 1),
        ]

    def _values(
        self,
        prefixes: PrefixTable,
        valued: Sequence[int],
        rolled: Sequence[Rollouts | None],
        counts: Counter[str],
    ) -> list[ChunkValue]:
        """Rows of these trajectories; the tokens of a shared prefix stand in its first row."""
        rows: list[ChunkValue] = []
        paid: set[int] = set()
        for t in valued:
            trajectory = prefixes.trajectories[t]
            reach = annotated(self.stopping, self._path(prefixes, t, rolled))
            for index in range(reach):
                head = (trajectory.trajectory_id, trajectory.problem_id, index)
                if index == len(prefixes.of[t]):
                    rows.append(self._outcome_row(head, trajectory.correct))
                    continue
                key = prefixes.of[t][index]
                rollouts = rolled[key]
                assert rollouts is not None, "every annotated prefix had its first wave"
                rows.append(self._row(head, rollouts, shared=key in paid))
                counts["shared_prefixes"] += key in paid
                paid.add(key)
        for made in filter(None, rolled):
            counts.update(
                prefixes=1,
                rollouts=made.trials + made.unverifiable,
                rollout_tokens=made.tokens,
                truncated_rollouts=made.truncated,
            )
        return rows

    def _row(self, head: tuple[str, str, int], rollouts: Rollouts, shared: bool) -> ChunkValue:
        low, high = ValueEstimate(rollouts.successes, rollouts.trials).interval()
        return ChunkValue(
            *head,
            successes=rollouts.successes,
            trials=rollouts.trials,
            truncated=rollouts.truncated,
            unverifiable=rollouts.unverifiable,
            generated_tokens=0 if shared else rollouts.tokens,
            is_outcome=False,
            planned=self.stopping.planned - rollouts.unverifiable,
            error_bound=self.stopping.error_bound,
            first_successes=rollouts.first_successes,
            first_trials=rollouts.first_trials,
            q_low=low,
            q_high=high,
        )

    def _outcome_row(self, head: tuple[str, str, int], correct: bool) -> ChunkValue:
        outcome = int(correct)
        return ChunkValue(
            *head,
            successes=outcome,
            trials=1,
            truncated=0,
            unverifiable=0,
            generated_tokens=0,
            is_outcome=True,
            planned=1,
            error_bound=self.stopping.error_bound,
            first_successes=outcome,
            first_trials=1,
            q_low=float(outcome),
            q_high=float(outcome),
        )

    async def _wave(
        self, prompt: list[int], prefix: Prefix, problem: Problem, completions: int
    ) -> Rollouts:
        samples = await self.generator.generate(
            [*prompt, *prefix],
            Sampling(
                max_tokens=max(1, self.config.max_tokens - len(prefix)),
                n=completions,
                temperature=self.config.temperature,
            ),
            affinity=problem.problem_id,
        )
        # The box may straddle the prefix, so the answer is read from the whole response.
        # Thinking is over where a chunk has ended, and what was thought before is no answer.
        before = self.prompts.answer_of_prefix(prefix)
        answers = [boxed_answer(before + sample.text) for sample in samples]
        checked = await check_all(self.checker, answers, problem.answer, problem.question)
        successes, unverifiable = checked.count(True), checked.count(None)
        trials = len(checked) - unverifiable
        tokens = sum(len(s.token_ids) for s in samples)
        self.seen.update(rollouts=len(samples), rollout_tokens=tokens)
        return Rollouts(
            successes=successes,
            trials=trials,
            truncated=sum(s.truncated for s in samples),
            unverifiable=unverifiable,
            tokens=tokens,
            first_successes=successes,
            first_trials=trials,
        )
