"""Word problems of small integers: generator, parser, worked solutions and the exact oracle.

A problem is a start value and a few operations (``buys 21``, ``doubles them``). A solution is one
line per operation and a boxed answer; a *chunk* is one of those lines, and the last chunk also
holds the box. All values are whole numbers without a unit.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

NAMES = ("tom", "ana", "ben", "mia", "leo", "zoe", "sam", "eva", "max", "ivy")
ITEMS = ("apples", "coins", "cards", "books", "shells", "pens", "stamps", "marbles")
ADD_VERBS = ("buys", "finds", "wins", "collects", "earns", "gets")
SUBTRACT_VERBS = ("loses", "sells", "gives", "drops", "uses", "breaks")
FACTOR_OF = {"doubles": 2, "triples": 3}

SYMBOL_OF = {
    **dict.fromkeys(ADD_VERBS, "+"),
    **dict.fromkeys(SUBTRACT_VERBS, "-"),
    **dict.fromkeys(FACTOR_OF, "*"),
}

_QUESTION = re.compile(
    rf"(?:{'|'.join(NAMES)}) has (\d+) (?:{'|'.join(ITEMS)})\. "
    r"((?:[a-z]+ (?:\d+|them)\. )+)how many\?"
)
_OPERATION = re.compile(r"([a-z]+) (\d+|them)\. ")
_STEP = re.compile(r"([a-z]+) (\d+)([-+*])(\d+)=(\d+)\n(?:\\boxed\{(\d+)\})?")
_TAGS = re.compile(r"</?chunk>")


@dataclass(frozen=True)
class Operation:
    """One operation: its verb, ``+``, ``-`` or ``*``, and the second operand."""

    verb: str
    symbol: str
    operand: int

    def apply(self, value: int) -> int:
        """The value after the operation on ``value``."""
        if self.symbol == "+":
            return value + self.operand
        if self.symbol == "-":
            return value - self.operand
        return value * self.operand


@dataclass(frozen=True)
class ArithmeticProblem:
    """A problem; ``values[0]`` is the start and ``values[i + 1]`` the value after operation i."""

    question: str
    start: int
    operations: tuple[Operation, ...]
    values: tuple[int, ...]

    @property
    def answer(self) -> str:
        """The final value, as written inside the box."""
        return str(self.values[-1])


@dataclass(frozen=True)
class Step:
    """A chunk as read from its text: ``verb left symbol operand = result`` and the boxed number."""

    verb: str
    left: int
    symbol: str
    operand: int
    result: int
    boxed: int | None = None

    @property
    def text(self) -> str:
        """The chunk's text, without tags."""
        line = f"{self.verb} {self.left}{self.symbol}{self.operand}={self.result}\n"
        return line if self.boxed is None else f"{line}\\boxed{{{self.boxed}}}"


def strip_tags(text: str) -> str:
    """``text`` without any ``<chunk>`` and ``</chunk>``."""
    return _TAGS.sub("", text)


def parse_step(chunk: str) -> Step | None:
    """Read one chunk (tags allowed); None when it is anything but one step, with or without a box.

    Numbers must be written as the oracle would write them: ``085`` is not a step.
    """
    text = strip_tags(chunk)
    match = _STEP.fullmatch(text)
    if match is None:
        return None
    verb, left, symbol, operand, result, boxed = match.groups()
    step = Step(
        verb, int(left), symbol, int(operand), int(result), None if boxed is None else int(boxed)
    )
    return step if step.text == text else None


def _question(name: str, item: str, start: int, operations: Sequence[Operation]) -> str:
    parts = [f"{name} has {start} {item}. "]
    for op in operations:
        parts.append(f"{op.verb} {'them' if op.symbol == '*' else op.operand}. ")
    return "".join(parts) + "how many?"


def _sample_operation(
    rng: random.Random, value: int, verbs: dict[str, list[str]], max_value: int
) -> Operation | None:
    """One operation that keeps the value in 2..max_value; None when ``value`` is a dead end.

    Small values mostly grow and large ones mostly shrink, so that a walk of five operations
    neither sticks to one end nor needs a third digit.
    """
    draw = rng.random()
    for factor, threshold in ((2, 0.12), (3, 0.2)):
        verb = "doubles" if factor == 2 else "triples"
        if draw < threshold and value * factor <= max_value and verb in verbs["*"]:
            verbs["*"].remove(verb)
            return Operation(verb, "*", factor)
    grows = rng.random() < (0.75 if value < 0.4 * max_value else 0.35)
    if grows and value <= max_value - 5:
        return Operation(verbs["+"].pop(), "+", rng.randint(3, max_value - value))
    if value < 7:
        return None
    return Operation(verbs["-"].pop(), "-", rng.randint(3, value - 2))


def make_problem(
    rng: random.Random, min_ops: int = 4, max_ops: int = 5, max_value: int = 99
) -> ArithmeticProblem:
    """Draw a problem of ``min_ops`` to ``max_ops`` operations (at most 6), no verb used twice.

    Raises ValueError when the bounds cannot be met.
    """
    if not 1 <= min_ops <= max_ops <= len(ADD_VERBS):
        raise ValueError(f"need 1 <= min_ops <= max_ops <= {len(ADD_VERBS)}: {min_ops}, {max_ops}")
    if max_value < 20:
        raise ValueError(f"max_value must be at least 20, not {max_value}")
    while True:
        verbs = {
            "+": rng.sample(ADD_VERBS, len(ADD_VERBS)),
            "-": rng.sample(SUBTRACT_VERBS, len(SUBTRACT_VERBS)),
            "*": list(FACTOR_OF),
        }
        values = [rng.randint(11, min(99, max_value))]
        operations: list[Operation] = []
        for _ in range(rng.randint(min_ops, max_ops)):
            op = _sample_operation(rng, values[-1], verbs, max_value)
            if op is None:
                break
            operations.append(op)
            values.append(op.apply(values[-1]))
        else:
            question = _question(rng.choice(NAMES), rng.choice(ITEMS), values[0], operations)
            return ArithmeticProblem(question, values[0], tuple(operations), tuple(values))


def make_problems(
    count: int, seed: int, min_ops: int = 4, max_ops: int = 5, max_value: int = 99
) -> list[ArithmeticProblem]:
    """``count`` problems with distinct questions, the same for the same arguments.

    Raises ValueError when the bounds do not allow that many (after 100 draws for each).
    """
    rng = random.Random(f"arithmetic-{seed}")
    found: dict[str, ArithmeticProblem] = {}
    for _ in range(100 * count):
        if len(found) == count:
            break
        problem = make_problem(rng, min_ops, max_ops, max_value)
        found.setdefault(problem.question, problem)
    if len(found) < count:
        raise ValueError(f"found only {len(found)} distinct problems of the {count} wanted")
    return list(found.values())


def parse_problem(question: str) -> ArithmeticProblem:
    """The problem in ``question``. Raises ValueError, naming the text, if there is none."""
    match = _QUESTION.fullmatch(question)
    if match is None:
        raise ValueError(f"not an arithmetic problem: {question!r}")
    start, body = match.groups()
    operations = []
    for verb, operand in _OPERATION.findall(body):
        symbol = SYMBOL_OF.get(verb)
        if symbol is None or (symbol == "*") != (operand == "them"):
            raise ValueError(f"not an arithmetic problem ({verb!r} {operand!r}): {question!r}")
        operations.append(
            Operation(verb, symbol, FACTOR_OF[verb] if symbol == "*" else int(operand))
        )
    values = [int(start)]
    for op in operations:
        values.append(op.apply(values[-1]))
    return ArithmeticProblem(question, values[0], tuple(operations), tuple(values))


def true_step(problem: ArithmeticProblem, index: int, left: int | None = None) -> Step:
    """The right chunk ``index``; ``left`` replaces the value before it (a slip made earlier)."""
    op = problem.operations[index]
    left = problem.values[index] if left is None else left
    result = op.apply(left)
    last = index == len(problem.operations) - 1
    return Step(op.verb, left, op.symbol, op.operand, result, result if last else None)


def solution_chunks(problem: ArithmeticProblem) -> list[str]:
    """The right solution's chunk texts, without tags; the last one holds the box."""
    return [true_step(problem, i).text for i in range(len(problem.operations))]


def solution(problem: ArithmeticProblem, chunked: bool = False) -> str:
    """The right solution, plain or with every chunk inside ``<chunk>`` tags."""
    chunks = solution_chunks(problem)
    return "".join(f"<chunk>{c}</chunk>" for c in chunks) if chunked else "".join(chunks)


def step_is_right(problem: ArithmeticProblem, index: int, chunk_text: str) -> bool:
    """Whether chunk ``index`` is right, given that all chunks before it are.

    It must apply operation ``index`` to the true value before it; the last one must box its result
    and no other may hold a box. Tags are ignored.
    """
    if not 0 <= index < len(problem.operations):
        return False
    return strip_tags(chunk_text) == true_step(problem, index).text


def first_error(problem_or_question: ArithmeticProblem | str, chunks: Sequence[str]) -> int:
    """Index of the first wrong chunk, -1 when the solution is right and complete.

    A solution that stops before its box has its error at the last chunk given (0 when there is
    none). Raises ValueError when a question in text form cannot be read.
    """
    problem = (
        parse_problem(problem_or_question)
        if isinstance(problem_or_question, str)
        else problem_or_question
    )
    for i, chunk in enumerate(chunks):
        if not step_is_right(problem, i, chunk):
            return i
    return -1 if len(chunks) == len(problem.operations) else max(0, len(chunks) - 1)


def split_plain(response: str) -> list[str] | None:
    """Cut a plain solution into chunk texts, one per line, the box joining the line before it.

    Only the shape is asked for, not the arithmetic; None when any line is no step, or nothing is
    boxed at the end.
    """
    chunks = [m.group() for m in _STEP.finditer(response)]
    if not chunks or "".join(chunks) != response or "\\boxed" in "".join(chunks[:-1]):
        return None
    return chunks if chunks[-1].endswith("}") else None


def segment_plain(response: str) -> str | None:
    """Rule-based teacher segmenter: ``response`` with chunk tags inserted and nothing else changed.

    None when the text has tags already or does not have the shape of a solution.
    """
    chunks = split_plain(response)
    return None if chunks is None else "".join(f"<chunk>{c}</chunk>" for c in chunks)


def split_lines(response: str) -> list[str]:
    """Cut any plain response after each line; a box joins the line before it. Nothing is lost."""
    return re.findall(r"[^\n]*\n(?:\\boxed[^\n]*)?|[^\n]+", response)
