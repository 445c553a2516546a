"""Edits of the embedded task's steps, what is true of them, and solutions beyond its range."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from stepwiser.data.records import StepItem
from stepwiser.evaluation.faithfulness import REPAIRED, Probe
from stepwiser.tasks.arithmetic import (
    Operation,
    Step,
    first_error,
    make_problem,
    parse_problem,
    parse_step,
    solution,
    split_lines,
    strip_tags,
    true_step,
)
from stepwiser.tasks.transcripts import RECOMPUTE, sloppy_solution, wrong_number

# --- written solutions, within the range of training and beyond it -------------------------------


@dataclass(frozen=True)
class Range:
    """What problems are like; `make_problems` draws 4 or 5 operations and values up to 99."""

    name: str
    operations: tuple[int, int]
    max_value: int
    above: int
    """At least one value of the problem is above this."""


RANGES = (
    Range("within the range", (4, 5), 99, 0),
    Range("6 operations", (6, 6), 99, 0),
    Range("values of 100 to 199", (4, 5), 199, 99),
)


def written(span: Range, count: int, seed: int) -> list[StepItem]:
    """Solutions of ``count`` different problems of a range, every second one right.

    The others have one result as a careless reckoner gives it, and go on from there. The policy
    would not do: beyond its range it solves next to nothing, and a set without right solutions has
    no F1. What is right needs no policy, for a problem has only one right solution.
    """
    rng = random.Random(f"written-{span.name}-{seed}")
    items: dict[str, StepItem] = {}
    while len(items) < count:
        problem = make_problem(rng, *span.operations, span.max_value)
        if max(problem.values) <= span.above or problem.question in items:
            continue
        right = len(items) % 2 == 0
        text = solution(problem) if right else "".join(sloppy_solution(rng, problem))
        steps = split_lines(text)
        items[problem.question] = StepItem(
            id=f"{span.name}-{len(items)}",
            problem=problem.question,
            steps=steps,
            label=first_error(problem, steps),
            final_answer_correct=steps[-1].endswith(f"{{{problem.answer}}}"),
            generator="written",
        )
    return list(items.values())


# --- faithfulness --------------------------------------------------------------------------------


def corrupt(rng: random.Random, item: StepItem, index: int) -> dict[str, tuple[str, str]]:
    """A right step made wrong in its result, its operand or its sign; the true result of each.

    With a wrong operand or sign the result follows from it, so the step is right in itself and
    wrong for the problem. A factor has no digits to change and no sign: such a step has the first
    edit only, as has one whose other sign would lead below zero.
    """
    step = true_step(parse_problem(item.problem), index)
    edits = {"result": _with_result(step, wrong_number(rng, step.result))}
    if step.symbol != "*":
        deltas = [d for d in (-10, -3, -1, 1, 3, 10) if step.operand + d >= 1]
        operands = [o for d in deltas if _result(step, o := step.operand + d) >= 0]
        operand = rng.choice(operands)
        edits["operand"] = _with_result(replace(step, operand=operand), _result(step, operand))
        other = replace(step, symbol="-" if step.symbol == "+" else "+")
        if _result(other, step.operand) >= 0:
            edits["operation"] = _with_result(other, _result(other, step.operand))
    return {kind: (edited.text, str(step.result)) for kind, edited in edits.items()}


def repair(rng: random.Random, item: StepItem, index: int) -> dict[str, tuple[str, str]]:
    """The first wrong step made right.

    Nothing where the solution has too many steps, or too few: what is wrong is then no step's text.
    """
    problem = parse_problem(item.problem)
    if index >= len(problem.operations):
        return {}
    step = true_step(problem, index)
    same = strip_tags(item.steps[index]) == step.text
    return {} if same else {REPAIRED: (step.text, str(step.result))}


def _result(step: Step, operand: int) -> int:
    return Operation(step.verb, step.symbol, operand).apply(step.left)


def _with_result(step: Step, result: int) -> Step:
    return replace(step, result=result, boxed=None if step.boxed is None else result)


@dataclass(frozen=True)
class Worked:
    """What a worked check says: the value it arrives at, the one it reads, whether they differ."""

    value: int
    written: int
    differ: bool


_WORKED = re.compile(
    rf"{RECOMPUTE}[a-z]+ \d+[-+*]\d+: (?:[^;]+; )+check ((?:\d\d (?:same|differ), )+)"
)
_PAIR = re.compile(r"(\d)(\d) (same|differ), ")


def read_analysis(analysis: str) -> Worked | None:
    """Read a worked check; None for any other text, a verdict without working included."""
    match = _WORKED.match(analysis)
    if match is None:
        return None
    pairs = _PAIR.findall(match.group(1))
    return Worked(
        int("".join(ours for ours, _, _ in pairs)),
        int("".join(theirs for _, theirs, _ in pairs)),
        any(said == "differ" for _, _, said in pairs),
    )


def analysis_follows(probe: Probe, analysis: str) -> bool | None:
    """Whether the check works out the true result, reads the step's own, and compares truly.

    None where the judge has written no such check.
    """
    worked = read_analysis(analysis)
    if worked is None:
        return None
    step = parse_step(probe.after.step)
    assert step is not None, probe.after.step
    return (
        str(worked.value) == probe.truth
        and worked.written == step.result
        and worked.differ == (worked.value != worked.written)
    )
