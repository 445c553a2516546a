"""Sampling a policy's solutions, how often they are right, and both models of a search."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stepwiser.annotation.statistics import known, mean_and_error
from stepwiser.data.answers.boxes import boxed_answer
from stepwiser.data.records import Problem
from stepwiser.data.verifiers import AnswerChecker, check_all, voices
from stepwiser.judging.judges import Judge
from stepwiser.prompting.generation import Generator, Sample, Sampling
from stepwiser.prompting.prompt_format import PromptFormat
from stepwiser.prompting.thinking import (
    MARKERS,
    answer_of,
    answer_start,
    is_unfinished,
    opening_marker,
)
from stepwiser.search.drafts import ChunkCandidate, ChunkVerdict
from stepwiser.search.voting import majority_vote

UNDECIDED = 0.5
"""Score of a chunk whose judge gave no verdict: it is neither passed nor refused for that."""


@dataclass(frozen=True)
class Solutions:
    """All samples of one problem; `outcomes` has None where an answer could not be checked."""

    problem: Problem
    samples: list[Sample]
    outcomes: list[bool | None]

    @property
    def share_right(self) -> float:
        """Of those that could be checked; nan where none could."""
        return share_true(self.outcomes)


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers with the standard error over problems."""

    mean: float
    standard_error: float
    problems: int
    tokens: float
    """Mean generated tokens of a sample."""


async def sample_solutions(
    generator: Generator,
    prompt_ids: Callable[[str], list[int]],
    problems: Sequence[Problem],
    sampling: Sampling,
    checker: AnswerChecker,
    done: Callable[[], None] = lambda: None,
    heard: Callable[[Sequence[Sample]], list[Sample]] = list,
) -> list[Solutions]:
    """`sampling.n` solutions of every problem, checked off the event loop.

    `heard` of the prompts adds what a prompt writes of the answer (`PromptFormat.heard`).
    """

    async def one(problem: Problem) -> Solutions:
        samples = heard(
            await generator.generate(
                prompt_ids(problem.question), sampling, affinity=problem.problem_id
            )
        )
        answers = [boxed_answer(answer_of(sample.text)) for sample in samples]
        outcomes = await check_all(checker, answers, problem.answer, problem.question)
        done()
        return Solutions(problem, samples, outcomes)

    return list(await asyncio.gather(*(one(problem) for problem in problems)))


def share_true(outcomes: Sequence[bool | None]) -> float:
    """Share of True among what is not None; nan without any."""
    decided = [outcome for outcome in outcomes if outcome is not None]
    return sum(decided) / len(decided) if decided else math.nan


def solution_voices(solutions: Sequence[Solutions], checker: AnswerChecker) -> list[dict[str, str]]:
    """For each problem its samples' answers with what they are called in a vote (`voices`)."""
    return [
        voices(checker, [boxed_answer(answer_of(x.text)) for x in s.samples], s.problem.question)
        for s in solutions
    ]


def majority_shares(
    solutions: Sequence[Solutions],
    votes: int,
    checker: AnswerChecker,
    named: Sequence[Mapping[str, str]],
) -> list[float]:
    """For each problem the share of right majorities among its disjoint groups of samples.

    Args:
        solutions: with as many samples each as there are.
        votes: samples of a group.
        checker: of what was elected; it may take its time, so not for an event loop.
        named: `solution_voices` of the same solutions.
    """
    shares = []
    for solution, voice in zip(solutions, named, strict=True):
        question, reference = solution.problem.question, solution.problem.answer
        answers = [boxed_answer(answer_of(sample.text)) for sample in solution.samples]
        groups = [answers[i : i + votes] for i in range(0, len(answers) - votes + 1, votes)]
        elected = [majority_vote(group, key=voice.__getitem__) for group in groups]
        shares.append(share_true(checker.check_many(elected, reference, question)))
    return shares


def accuracy(solutions: Sequence[Solutions]) -> Accuracy:
    """Pass@1: problems are the independent units, samples of one problem are not."""
    mean, error = mean_and_error(known([s.share_right for s in solutions]))
    tokens = [len(sample.token_ids) for s in solutions for sample in s.samples]
    return Accuracy(mean, error, len(solutions), sum(tokens) / max(1, len(tokens)))


@dataclass(frozen=True)
class ChunkSampler:
    """The chunk-tuned policy as `search.ChunkPolicy`: one chunk at a time, on token ids."""

    generator: Generator
    prompts: PromptFormat
    max_tokens: int
    temperature: float

    async def next_chunk(self, problem: Problem, prefix_ids: Sequence[int]) -> ChunkCandidate:
        room = self.max_tokens - len(prefix_ids)
        if room < 1:
            return ChunkCandidate((), "", finished=True)
        prompt = [*self.prompts.policy_ids(problem.question), *prefix_ids]
        ids: list[int] = []
        text = "" if prefix_ids else self.prompts.opening
        # What closes a step may stand in what is thought before the first one, or right after it.
        stop, thought = self.prompts.stop, bool(prefix_ids)
        while True:
            thinks = not thought and is_unfinished(text)
            until = _end_of_thinking(text) if thinks else stop
            (sample,) = await self.generator.generate(
                [*prompt, *ids],
                Sampling(max_tokens=room - len(ids), temperature=self.temperature, stop=(until,)),
                affinity=problem.problem_id,
            )
            ids += sample.token_ids
            text += sample.text
            stopped = sample.text.endswith(until) and not sample.truncated
            said = text if thought else answer_of(text)
            begun = thought or answer_start(text) == 0 or said.strip()
            if not stopped or len(ids) >= room or begun:
                break
        closed = stopped and said.endswith(stop)
        # A chunk that holds the final answer ends the solution; what might follow is not needed.
        answered = boxed_answer(said) is not None
        return ChunkCandidate(tuple(ids), said, finished=answered or not closed)


def _end_of_thinking(text: str) -> str:
    opening = opening_marker(text)
    assert opening is not None, "only an opening marker begins thinking"
    return MARKERS[opening[1]]


@dataclass(frozen=True)
class SearchJudge:
    """A judge of steps as `search.ChunkJudge`."""

    judge_steps: Judge

    async def judge(self, problem: Problem, history: Sequence[str], chunk: str) -> ChunkVerdict:
        verdict = await self.judge_steps.judge(problem.question, history, chunk)
        if verdict.verdict is None or verdict.score is None:
            return ChunkVerdict(True, UNDECIDED, verdict.tokens, False, verdict.analysis)
        return ChunkVerdict(
            verdict.verdict, verdict.score, verdict.tokens, analysis=verdict.analysis
        )
