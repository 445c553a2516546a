"""Trajectories made elsewhere, to be annotated like the policy's own (`annotate.source`).

Formats, told apart by the columns of the first row:

- ProcessBench: `problem`, `steps`, and where there are `id`, `final_answer_correct`, `answer`.
- Solutions: `problem`, `answer`, `solution` (split at blank lines), and `id` where there is one.
- Labelled steps of other makers (`step_formats`): their labels are left to those who score judges.

A rollout is right or wrong by the problem's reference answer. ProcessBench has none, so it is
looked for in the row's `answer`, in the run's own data set (`data.source`) and in a solution of the
same problem that the file calls right. A row without one is listed as unusable.

Every given trajectory is valued, also of a problem that the policy always or never solves: whoever
gives trajectories wants values for these, while the difficulty filter is there to choose among what
was sampled. Q_0 is still the pass rate of `annotate.responses` responses of the policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from stepwiser.config import DataConfig
from stepwiser.config.annotation import AnnotateConfig
from stepwiser.data.answers.boxes import boxed_answer, collection
from stepwiser.data.cells import answer_text, problem_text, text, truth
from stepwiser.data.cells import steps as steps_of
from stepwiser.data.files import BadRow, FileRow, Rejected, checked, is_table, read_rows
from stepwiser.data.labelled_solution import LabelledSolution
from stepwiser.data.presets import with_preset
from stepwiser.data.records import Problem, Trajectory, content_id
from stepwiser.data.sources import ProblemSet, reference_answer, reference_answers
from stepwiser.data.step_formats import are_ratings, format_of
from stepwiser.data.step_items import notice_of, own_names
from stepwiser.data.verifiers import (
    AnswerChecker,
    unverifiable,
)
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
    if not is_table(path):
        raise UserError(f"annotate.source {source} does not exist: give a JSON or Parquet file")
    rows = read_rows(path)
    if not rows:
        raise UserError(f"annotate.source {source} is empty")
    data = with_preset(data)
    read = _read(rows, data)
    where = f"annotate.source {source}"
    bad = [(one.row, one.problem) for one in read]
    checked(bad, where, data.skip_bad_rows, "data.skip_bad_rows")
    known = _known_answers(read, data)
    groups: dict[tuple[str, str], list[ImportedSolution]] = {}
    rejected = [Rejected(one.row.index, one.problem) for one in read if one.problem]
    seen: set[object] = set()
    used: list[tuple[tuple[str, str], ImportedSolution]] = []
    verifiable = cache(lambda answer: not unverifiable(checker, [answer]))
    for one in (row for row in read if not row.problem):
        question, solution, own = one.question, one.solution, one.answer
        answer = reference_answer(data, own) if own else known.get(_same(question), "")
        key = (solution.solution_id, question, solution.steps)
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
            rejected.append(Rejected(one.row.index, reason))
            continue
        seen.add(key)
        used.append(((question, answer), solution))
    notices = _tell_apart(used, groups)
    if not groups:
        reasons = Counter(r.reason for r in rejected).most_common(3)
        raise UserError(f"{where}: none of {len(rows)} rows is usable: {reasons}")
    problems: list[Problem] = [
        ImportedProblem(content_id(question, answer), question, answer, tuple(solutions))
        for (question, answer), solutions in groups.items()
    ]
    return ProblemSet(problems, rejected, len(rows), notices)


def _tell_apart(
    used: Sequence[tuple[tuple[str, str], ImportedSolution]],
    groups: dict[tuple[str, str], list[ImportedSolution]],
) -> tuple[str, ...]:
    """Fill the groups by problem; solutions of one id get ids of their own. Returns what to say."""
    named = [solution.solution_id for _, solution in used if solution.solution_id is not None]
    own, twice = own_names(named)
    ids = iter(own)
    for problem, solution in used:
        if solution.solution_id is not None:
            solution = replace(solution, solution_id=next(ids))
        groups.setdefault(problem, []).append(solution)
    return (notice_of(twice, "solutions"),) if twice else ()


def imported_trajectories(
    problem: ImportedProblem,
    prompts: PromptFormat,
    checker: AnswerChecker,
    config: AnnotateConfig,
    right: int,
    responses: int,
    counts: Counter[str],
) -> list[Trajectory]:
    """The given solutions as if the policy had sampled them; unusable ones are counted by reason.

    Args:
        problem: with its solutions.
        prompts: of the policy, whose tokens and tags they get.
        checker: for final answers that the file says nothing of.
        config: its limits on chunks and tokens.
        right: right ones among the policy's own responses to the problem, for Q_0.
        responses: those that could be checked.
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
            problem_trials=responses,
        )
    return list(found.values())


@dataclass(frozen=True)
class _SolutionRow:
    """A row as it was read, or why it cannot be."""

    row: FileRow
    question: str = ""
    solution: ImportedSolution = ImportedSolution(None, (), None, None)
    answer: str = ""
    """The row's own reference answer; empty where it has none."""
    problem: str = ""


def _read(rows: Sequence[FileRow], data: DataConfig) -> list[_SolutionRow]:
    """Every row, in the format of the first one."""
    whole = [row.value for row in rows if not row.problem]
    form = format_of(whole)
    rated = are_ratings(whole) if form else False
    in_steps = bool(whole) and "steps" in whole[0]
    read = []
    for row in rows:
        try:
            if row.problem:
                raise BadRow(row.problem)
            if form and form.name != "ProcessBench":
                read.append(_labelled(row, form.solution(row.value, rated), data))
            else:
                read.append(_own_format(row, in_steps, data))
        except BadRow as error:
            read.append(_SolutionRow(row, problem=str(error)))
    return read


def _labelled(row: FileRow, found: LabelledSolution, data: DataConfig) -> _SolutionRow:
    steps = [step for step in found.written or found.steps if step.strip()]
    solution = _solution(found.solution_id, steps, found.correct, data)
    return _SolutionRow(row, found.problem.strip(), solution, found.answer or "")


def _own_format(row: FileRow, in_steps: bool, data: DataConfig) -> _SolutionRow:
    """ProcessBench, or whole solutions. Raises BadRow where columns are missing (naming them)."""
    value = row.value
    needed = {"problem", "steps"} if in_steps else {"problem", "answer", "solution"}
    if missing := sorted(needed - value.keys()):
        raise BadRow(
            f"missing {missing}; it has {sorted(map(str, value))}. "
            "A row needs problem and steps (ProcessBench), or problem, answer and solution"
        )
    if in_steps:
        steps = [step for step in steps_of(value["steps"], "steps") if step.strip()]
    else:
        # Paragraphs end with blank lines, whichever line ends a file has.
        whole = text(value["solution"], "solution").replace("\r\n", "\n").strip()
        steps = split_paragraphs(whole)
    said = value.get("final_answer_correct")
    correct = None if said is None else truth(said, "final_answer_correct")
    solution = _solution(text(value.get("id"), "id") or None, steps, correct, data)
    question = problem_text(value["problem"], "problem").strip()
    return _SolutionRow(row, question, solution, answer_text(value.get("answer"), "answer").strip())


def _solution(
    name: str | None, steps: Sequence[str], correct: bool | None, data: DataConfig
) -> ImportedSolution:
    whole = "\n\n".join(steps)
    final = boxed_answer(whole)
    if final is None and data.answer_delimiter and data.answer_delimiter in whole:
        final = whole.rpartition(data.answer_delimiter)[2].strip()
    return ImportedSolution(name, tuple(steps), final, correct)


def _known_answers(read: Sequence[_SolutionRow], data: DataConfig) -> dict[str, str]:
    """Reference answers by problem, for rows that bring none; the data set's word comes first."""
    if all(one.answer for one in read if not one.problem):
        return {}
    known: dict[str, str] = {}
    for one in read:
        if one.solution.correct and one.solution.final_answer:
            known.setdefault(_same(one.question), collection(one.solution.final_answer))
    return known | {_same(question): a for question, a in reference_answers(data).items()}


def _same(question: str) -> str:
    """The same problem may be set with other line breaks."""
    return " ".join(question.split())
