"""What the tiny base model reads to become a judge: prompts, worked checks, guesses, corruptions.

Two answers to a judge prompt exist and the first token chooses: ``glance`` (the verdict at once)
and ``recompute`` (copy the operation from the problem and the value from the history, calculate by
columns, compare digit by digit). The multi-turn judge answers ``+`` or ``-`` after every chunk.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stepwiser.tasks.arithmetic import (
    SYMBOL_OF,
    ArithmeticProblem,
    Operation,
    Step,
    make_problem,
    parse_step,
    solution_chunks,
    strip_tags,
    true_step,
)

GLANCE = "glance "
RECOMPUTE = "recompute "
POSITIVE = "\\boxed{Positive}"
NEGATIVE = "\\boxed{Negative}"


@dataclass(frozen=True)
class JudgeCase:
    """A chunk to judge. ``right`` is relative to the history, which may itself hold a slip."""

    problem: ArithmeticProblem
    history: tuple[str, ...]
    chunk: str
    right: bool

    @property
    def prompt(self) -> str:
        """The judge prompt's text."""
        return judge_prompt(self.problem.question, self.history, self.chunk)


def judge_prompt(question: str, history: Sequence[str], chunk: str) -> str:
    """The single user message that asks for a verdict on ``chunk``; chunk tags are dropped."""
    return f"{question}\n{strip_tags(''.join(history))}judge {strip_tags(chunk)}"


def glance_answer(right: bool) -> str:
    """The verdict without any reasoning."""
    return GLANCE + (POSITIVE if right else NEGATIVE)


def _columns(left: int, op: Operation) -> list[tuple[str, int, int]]:
    """Columns of ``left op operand``, lowest first: (what is calculated, carry, digit)."""
    lefts = [int(d) for d in str(left)[::-1]]
    rights = [int(d) for d in str(op.operand)[::-1]]
    carry = 0
    columns = []
    for i in range(len(lefts) if op.symbol == "*" else max(len(lefts), len(rights))):
        x = lefts[i] if i < len(lefts) else 0
        y = op.operand if op.symbol == "*" else (rights[i] if i < len(rights) else 0)
        before = carry
        if op.symbol == "-":
            carry, digit = (1 if x - y - before < 0 else 0), (x - y - before) % 10
        else:
            carry, digit = divmod((x * y if op.symbol == "*" else x + y) + before, 10)
        sign = "-" if op.symbol == "-" else "+"
        columns.append((f"{x}{op.symbol}{y}{sign}{before}", carry, digit))
    return columns


def recompute_answer(
    problem: ArithmeticProblem,
    history: Sequence[str],
    chunk: str,
    slip: random.Random | None = None,
) -> tuple[str, bool]:
    """The worked check of ``chunk`` and its verdict (True = Positive).

    With ``slip`` one digit of a column or one comparison is wrong, and all that follows, the
    verdict included, is drawn from the wrong text; such a verdict may still be the right one.
    A chunk that is no step, or one after the last operation, is Negative without a calculation.
    """
    index = len(history)
    step = parse_step(chunk)
    if step is None or index >= len(problem.operations):
        return f"{RECOMPUTE}so {NEGATIVE}", False
    before = parse_step(history[-1]) if history else None
    left = problem.start if before is None else before.result
    op = problem.operations[index]

    columns = _columns(left, op)
    flipped = -1
    if slip is not None and slip.random() < 0.5:
        at = slip.randrange(len(columns))
        text, carry, digit = columns[at]
        written = str(step.result)[::-1]
        # Half of the wrong digits are the chunk's own: to read off what one should calculate is
        # the slip that hides an error.
        wrong = int(written[at]) if at < len(written) else digit
        if wrong == digit or slip.random() < 0.5:
            wrong = (digit + slip.randint(1, 9)) % 10
        columns[at] = (text, carry, wrong)
    elif slip is not None:
        flipped = slip.randrange(10)

    digits = [digit for _, _, digit in columns]
    if op.symbol == "-" and columns[-1][1]:
        digits = [0]  # below zero: there is no such number of things
    elif op.symbol != "-" and columns[-1][1]:
        digits.append(columns[-1][1])
    result = str(int("".join(map(str, reversed(digits)))))
    written = str(step.result)
    width = max(len(result), len(written))
    pairs = list(zip(result.zfill(width), written.zfill(width), strict=True))

    verdict = (step.verb, step.left, step.symbol, step.operand) == (
        op.verb,
        left,
        op.symbol,
        op.operand,
    )
    parts = [f"{RECOMPUTE}{op.verb} {left}{op.symbol}{op.operand}: "]
    parts += [f"{text}={carry}{digit}; " for text, carry, digit in columns]
    parts.append("check ")
    for i, (ours, theirs) in enumerate(pairs):
        same = (ours == theirs) != (flipped % width == i and flipped >= 0)
        verdict = verdict and same
        parts.append(f"{ours}{theirs} {'same' if same else 'differ'}, ")
    last = index == len(problem.operations) - 1
    if last or step.boxed is not None:
        boxed_right = last and step.boxed == step.result
        verdict = verdict and boxed_right
        boxed = "-" if step.boxed is None else str(step.boxed)
        parts.append(f"box {boxed} {'same' if boxed_right else 'differ'}, ")
    parts.append(f"so {POSITIVE if verdict else NEGATIVE}")
    return "".join(parts), verdict


def wrong_number(rng: random.Random, number: int, max_value: int = 99) -> int:
    """A number unlike ``number`` and not negative: any, a near one, or one with a digit changed."""
    kind = rng.random()
    while True:
        if kind < 0.5:
            wrong = rng.randint(2, max_value)
        elif kind < 0.8:
            wrong = number + rng.choice((1, 2, 9, 10, 11, 20)) * rng.choice((-1, 1))
        else:
            digits = list(str(number))
            digits[rng.randrange(len(digits))] = str(rng.randint(0, 9))
            wrong = int("".join(digits))
        if wrong != number and wrong >= 0:
            return wrong


def _rewrite(step: Step, **changes: Any) -> Step:
    """``step`` with changes, its result following from them (never below zero) and also boxed."""
    step = replace(step, **changes)
    result = max(0, Operation(step.verb, step.symbol, step.operand).apply(step.left))
    return replace(step, result=result, boxed=None if step.boxed is None else result)


def _with_result(step: Step, result: int) -> Step:
    return replace(step, result=result, boxed=None if step.boxed is None else result)


def corrupt_step(rng: random.Random, problem: ArithmeticProblem, index: int, step: Step) -> Step:
    """``step`` (right, at ``index``) made wrong, mostly in the result as the policy's slips are.

    Of all corruptions about 80 % change the result alone; the rest take a wrong operand, value
    before, sign or verb, or a box that is early, missing or unlike the result.
    """
    kind = rng.random()
    wrong = step
    if 0.80 <= kind < 0.87 and step.symbol != "*":
        operand = max(1, step.operand + rng.choice((-10, -3, -1, 1, 5, 10)))
        wrong = _rewrite(step, operand=operand)
    elif 0.87 <= kind < 0.93:
        wrong = _rewrite(step, left=wrong_number(rng, step.left))
    elif 0.93 <= kind < 0.95 and step.symbol != "*":
        wrong = _rewrite(step, symbol="-" if step.symbol == "+" else "+")
    elif 0.95 <= kind < 0.975:
        others = [op for i, op in enumerate(problem.operations) if i != index]
        if others and rng.random() < 0.7:  # an operation skipped or done twice
            op = rng.choice(others)
            wrong = _rewrite(step, verb=op.verb, symbol=op.symbol, operand=op.operand)
        else:
            same_sign = [v for v, s in SYMBOL_OF.items() if s == step.symbol and v != step.verb]
            wrong = replace(step, verb=rng.choice(same_sign))
    elif kind >= 0.975:
        if step.boxed is None:
            wrong = replace(step, boxed=step.result)
        else:
            boxed = None if rng.random() < 0.5 else wrong_number(rng, step.boxed)
            wrong = replace(step, boxed=boxed)
    return wrong if wrong != step else _with_result(step, wrong_number(rng, step.result))


def sloppy_solution(
    rng: random.Random, problem: ArithmeticProblem, careless: bool = True
) -> tuple[str, str, str]:
    """A plain solution with one wrong result; what follows goes on from it, never below zero.

    ``careless`` results are like a careless reckoner's, others any wrong number. Returns the text
    before the result, the result, the text after it.
    """
    while True:
        at = rng.randrange(len(problem.operations))
        value = problem.start
        lines = []
        for i in range(len(problem.operations)):
            step = true_step(problem, i, value)
            if i == at:
                draw = _slipped_number if careless else wrong_number
                step = _with_result(step, draw(rng, step.result))
            value = step.result
            lines.append(step.text)
        if all(parse_step(line) for line in lines):
            head, _, tail = lines[at].partition("=")
            result, _, rest = tail.partition("\n")
            before = "".join(lines[:at]) + f"{head}="
            return before, result, "\n" + rest + "".join(lines[at + 1 :])


def _slipped_number(rng: random.Random, number: int) -> int:
    """A number as a careless calculation gives it: a carry lost, off by one, or a wrong digit."""
    kind = rng.random()
    if kind < 0.8:
        slipped = number + (10 if kind < 0.5 else 1) * rng.choice((-1, 1))
        return slipped if slipped >= 0 else number + 1
    digits = list(str(number))
    at = rng.randrange(len(digits))
    digits[at] = str((int(digits[at]) + rng.randint(1, 9)) % 10)
    return int("".join(digits))


def sample_judge_case(rng: random.Random, min_ops: int = 4, max_ops: int = 5) -> JudgeCase:
    """A problem, a history and a chunk, wrong with probability one half.

    One history in eight goes on from a wrong number in the chunk before, so that the value has to
    be read from the history and cannot be derived from the problem.
    """
    problem = make_problem(rng, min_ops, max_ops)
    index = rng.randrange(len(problem.operations))
    history = solution_chunks(problem)[:index]
    left = problem.values[index]
    if index and rng.random() < 0.12:
        slipped = wrong_number(rng, left)
        if problem.operations[index].apply(slipped) >= 0:
            left = slipped
            history[-1] = _with_result(true_step(problem, index - 1), left).text
    step = true_step(problem, index, left)
    right = rng.random() < 0.5
    if not right:
        step = corrupt_step(rng, problem, index, step)
    return JudgeCase(problem, tuple(history), step.text, right)


def sample_turns(rng: random.Random, min_ops: int = 4, max_ops: int = 5) -> list[tuple[str, str]]:
    """A multi-turn judgement: (user text, ``+`` or ``-``) turns, the first text with the problem.

    Half of the solutions are right throughout; the others end with their first wrong chunk.
    """
    problem = make_problem(rng, min_ops, max_ops)
    chunks = solution_chunks(problem)
    turns = [(chunk, "+") for chunk in chunks]
    if rng.random() < 0.5:
        at = rng.randrange(len(chunks))
        wrong = corrupt_step(rng, problem, at, true_step(problem, at)).text
        turns[at:] = [(wrong, "-")]
    turns[0] = (f"{problem.question}\n{turns[0][0]}", turns[0][1])
    return turns
