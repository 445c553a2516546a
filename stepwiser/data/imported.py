"""Trajectories made elsewhere, to be annotated like the policy's own (`annotate.source`).

Two formats, told apart by their columns:

- ProcessBench: `problem`, `steps`, and where there are `id`, `final_answer_correct`, `answer`.
- Solutions: `problem`, `answer`, `solution` (split at blank lines), and `id` where there is one.

A rollout is right or wrong by the problem's reference answer. ProcessBench has none, so it is
looked for in the row's `answer`, in the run's own data set (`data.source`) and in a solution of the
same problem that the file calls right. A row without one is listed as unusable.

Every given trajectory is valued, also of a problem that the policy always or never solves: whoever
gives trajectories wants values for these, while the difficulty filter is there to choose among what
was sampled. Q_0 is still the pass rate of `annotate.responses` responses of the policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stepwiser.config import DataConfig
from stepwiser.config.models import AnnotateConfig
from stepwiser.data.answers import boxed_answer, collection
from stepwiser.data.records import Problem, Trajectory, content_id
from stepwiser.data.sources import (
    ProblemSet,
    Rejected,
    read_rows,
    reference_answer,
    reference_answers,
)
from stepwiser.data.verifiers import AnswerChecker, unverifiable
from stepwiser.errors import UserError
from stepwiser.prompting.chunks import split_paragraphs
from stepwiser.prompting.prompt_format import PromptFormat


@dataclass(frozen=True)
class ImportedSolution:
    """A solution from elsewhere, in steps."""

    solution_id: str | None
    """The row's own id, which becomes the trajectory's."""
    steps: tuple[str, ...]
    final_answer: str | None
    correct: bool | None
    """What the file says of its final answer; None where that is to be checked."""


@dataclass(frozen=True)
class ImportedProblem(Problem):
    """A problem with the solutions whose steps are to be valued."""

    solutions: tuple[ImportedSolution, ...] = ()

    @property
    def content(self) -> str:
        """Names the problem and its solutions, as a unit of work needs it."""
        parts = [(s.solution_id, s.correct, *s.steps) for s in self.solutions]
        return content_id(self.problem_id, *parts)


def load_imported(source: str, data: DataConfig, checker: AnswerChecker) -> ProblemSet:
    """Read a file of trajectories; its problems in order of first appearance.

    Args:
        source: JSON, JSON-lines or Parquet file, in one of the two formats.
        data: the run's data set: reference answers are looked up there, and `answer_delimiter`
            says where an answer starts that is not in a box.
        checker: refuses reference answers that no rollout could be checked against.

    Raises UserError where the file does not exist, columns are missing (naming them), or no row is
    usable.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"annotate.source {source} does not exist: give a JSON or Parquet file")
    rows = read_rows(path)
    if not rows:
        raise UserError(f"annotate.source {source} is empty")
    known = _known_answers(_is_in_steps(source, rows), rows, data)
    groups: dict[tuple[str, str], list[ImportedSolution]] = {}
    rejected: list[Rejected] = []
    seen: set[object] = set()
    verifiable = cache(lambda answer: not unverifiable(checker, [answer]))
    for index, row in enumerate(rows):
        question = str(row["problem"] or "").strip()
        solution = _solution(row, data)
        own = str(row.get("answer") or "").strip()
        answer = reference_answer(data, own) if own else known.get(_same(question), "")
        key = solution.solution_id or (question, solution.steps)
        reason = ""
        if not question or not solution.steps:
            reason = "its problem or its solution is empty"
        elif key in seen:
            reason = f"the same {'id' if solution.solution_id else 'solution'} came before"
        elif not answer:
            reason = (
                "no reference answer: it has no column answer, its problem is not in "
                f"data.source={data.source}, and no solution of it is known to be right"
            )
        elif not verifiable(answer):
            reason = f"reference answer {answer!r} cannot be verified"
        elif solution.correct is None and solution.final_answer is None:
            reason = (
                "its solution ends in no \\boxed{} answer: add one, or set data.answer_delimiter"
            )
        if reason:
            rejected.append(Rejected(index, reason))
            continue
        seen.add(key)
        groups.setdefault((question, answer), []).append(solution)
    if not groups:
        reasons = Counter(r.reason for r in rejected).most_common(3)
        raise UserError(f"annotate.source {source}: none of {len(rows)} rows is usable: {reasons}")
    problems: list[Problem] = [
        ImportedProblem(content_id(question, answer), question, answer, tuple(solutions))
        for (question, answer), solutions in groups.items()
    ]
    return ProblemSet(problems, rejected)


def imported_trajectories(
    problem: ImportedProblem,
    prompts: PromptFormat,
    checker: AnswerChecker,
    config: AnnotateConfig,
    right: int,
    counts: Counter[str],
) -> list[Trajectory]:
    """The given solutions as if the policy had sampled them; unusable ones are counted by reason.

    Args:
        problem: with its solutions.
        prompts: of the policy, whose tokens and tags they get.
        checker: for final answers that the file says nothing of.
        config: its limits on chunks and tokens.
        right: right responses of the problem out of `config.responses`, for Q_0.
        counts: `malformed: …` goes here.
    """
    found: dict[str, Trajectory] = {}
    for solution in problem.solutions:
        try:
            ids, steps = prompts.from_steps(solution.steps)
            if len(steps.texts) > config.max_chunks:
                raise ValueError(f"more than {config.max_chunks} chunks")
            if len(ids) >= config.max_tokens:
                raise ValueError(f"longer than annotate.max_tokens={config.max_tokens}")
            correct = solution.correct
            if correct is None:
                correct = checker.check(solution.final_answer, problem.answer, problem.question)
            if correct is None:
                raise ValueError("answer could not be verified")
        except ValueError as error:
            counts[f"malformed: {error}"] += 1
            continue
        name = solution.solution_id or content_id(problem.problem_id, *ids)
        found[name] = Trajectory(
            trajectory_id=name,
            problem_id=problem.problem_id,
            question=problem.question,
            answer=problem.answer,
            response_ids=ids,
            chunks=steps.texts,
            chunk_ends=steps.token_ends,
            final_answer=solution.final_answer,
            correct=correct,
            problem_successes=right,
            problem_trials=config.responses,
        )
    return list(found.values())


def _is_in_steps(source: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the rows are in ProcessBench's format, not whole solutions.

    Raises UserError for a row that lacks columns of the format of the first one.
    """
    in_steps = "steps" in rows[0]
    needed = {"problem", "steps"} if in_steps else {"problem", "answer", "solution"}
    for index, row in enumerate(rows):
        missing = sorted(needed - row.keys())
        if missing:
            raise UserError(
                f"annotate.source {source}, row {index}: missing {missing}; it has {sorted(row)}. "
                "A row needs problem and steps (ProcessBench), or problem, answer and solution"
            )
    return in_steps


def _solution(row: Mapping[str, Any], data: DataConfig) -> ImportedSolution:
    steps = (
        [str(step) for step in row["steps"] if str(step).strip()]
        if "steps" in row
        else split_paragraphs(str(row["solution"] or "").strip())
    )
    text = "\n\n".join(steps)
    final = boxed_answer(text)
    if final is None and data.answer_delimiter and data.answer_delimiter in text:
        final = text.rpartition(data.answer_delimiter)[2].strip()
    said = row.get("final_answer_correct")
    name = row.get("id")
    return ImportedSolution(
        solution_id=None if name is None else str(name),
        steps=tuple(steps),
        final_answer=final,
        correct=None if said is None else bool(said),
    )


def _known_answers(
    in_steps: bool, rows: Sequence[Mapping[str, Any]], data: DataConfig
) -> dict[str, str]:
    """Reference answers by problem, for rows that bring none; the data set's word comes first."""
    if not in_steps or all(row.get("answer") for row in rows):
        return {}
    known: dict[str, str] = {}
    for row in rows:
        solution = _solution(row, data)
        if solution.correct and solution.final_answer:
            known.setdefault(_same(str(row["problem"])), collection(solution.final_answer))
    return known | {_same(question): a for question, a in reference_answers(data).items()}


def _same(question: str) -> str:
    """The same problem may be set with other line breaks."""
    return " ".join(question.split())
