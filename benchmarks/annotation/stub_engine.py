"""An engine without a model, for the real generator actor around it: it answers at once.

So what is left to measure is everything else: calls, chunks, checks, units. It knows the embedded
task and answers as a middling policy would, with right solutions and such with a slip in them, in
the tokens of the task's tokenizer. The answer is a function of the prompt and the request alone.
"""

from __future__ import annotations

import random
import re
import time
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from actors.engine.engine import EngineOptions, EngineStats
from stepwiser.prompting.chunks import CLOSE, OPEN
from stepwiser.prompting.generation import Sample, Sampling
from stepwiser.tasks import ArithmeticProblem, parse_problem
from stepwiser.tasks.arithmetic import Step
from stepwiser.tasks.tokenizer import EOS, PIECES, vocabulary

SLIP = 0.15
"""Probability that a right line is followed by one with a wrong result."""
SLIPS = (-10, -1, 1, 10)
REMEMBERED = 256
"""Problems whose solutions are kept: more than are under way at a time."""

_VOCABULARY = vocabulary()
_TOKENS = tuple(_VOCABULARY)
_PIECE = re.compile("|".join(map(re.escape, sorted(PIECES, key=len, reverse=True))))
_ASKED = _VOCABULARY["how many?"]
_CLOSE = _VOCABULARY[CLOSE]
_EOS = _VOCABULARY[EOS]

_Solution = tuple[tuple[int, ...], str]
"""Ids with the end of the sequence, and the text."""


class Policy:
    """Continues prompts of the embedded task."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, ...], tuple[ArithmeticProblem, dict]] = OrderedDict()

    def samples(self, prompt_ids: Sequence[int], sampling: Sampling) -> list[Sample]:
        """``sampling.n`` continuations.

        Of a problem alone the first is right and the second is not, so that every problem is worth
        annotating.
        """
        ids = list(prompt_ids)
        head = ids.index(_ASKED) + 1
        problem, solutions = self._look_up(tuple(ids[:head]))
        response = ids[head + 1 :]
        done = response.count(_CLOSE)
        value = _last_result(response) if done else problem.start
        lost = value != problem.values[done]
        rng = random.Random(zlib.crc32(array("i", ids).tobytes(), sampling.n))
        samples = []
        for number in range(sampling.n):
            at = _first_slip(rng, done, 0 if lost else len(problem.operations))
            if not done and number < 2:
                at = (None, len(problem.operations) - 1)[number]
            slip = rng.choice(SLIPS) if at is not None else 0
            key = (done, value, at, slip)
            solution = solutions.get(key)
            if solution is None:
                solution = solutions[key] = _solve(problem, *key)
            # Copies: what a pickle holds twice it writes once, and no two real samples are one.
            samples.append(Sample((*solution[0],), solution[1][:1] + solution[1][1:], "stop"))
        return samples

    def _look_up(self, head: tuple[int, ...]) -> tuple[ArithmeticProblem, dict]:
        known = self._known.get(head)
        if known is None:
            question = "".join(map(_TOKENS.__getitem__, head[1:]))
            known = self._known[head] = (parse_problem(question), {})
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return known


def _last_result(response: Sequence[int]) -> int:
    text = "".join(map(_TOKENS.__getitem__, response))
    return int(text.rpartition("=")[2].partition("\n")[0])


def _first_slip(rng: random.Random, start: int, end: int) -> int | None:
    return next((i for i in range(start, end) if rng.random() < SLIP), None)


def _solve(
    problem: ArithmeticProblem, start: int, value: int, at: int | None, slip: int
) -> _Solution:
    """Chunks from number ``start`` on, where ``value`` was reached; ``slip`` is added at one."""
    chunks = []
    last = len(problem.operations) - 1
    for i in range(start, last + 1):
        op = problem.operations[i]
        result = max(0, op.apply(value))
        if i == at:
            result = result + slip if result + slip >= 0 else result - slip
        boxed = result if i == last else None
        step = Step(op.verb, value, op.symbol, op.operand, result, boxed)
        chunks.append(f"{OPEN}{step.text}{CLOSE}")
        value = result
    text = "".join(chunks)
    return (*(_VOCABULARY[piece] for piece in _PIECE.findall(text)), _EOS), text


class StubEngine:
    """Stands where `actors.engine.engine.Engine` does (`Session(…, build=StubEngine)`)."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self._policy = Policy()
        self._started = time.monotonic()
        self._requests = self._generated = self._prompt = 0
        self._busy = 0.0
        self._version = 0

    async def start(self) -> None:
        """There is nothing to load."""

    async def check_health(self) -> None:
        """It cannot die."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> list[Sample]:
        began = time.thread_time()
        samples = self._policy.samples(prompt_ids, sampling)
        self._requests += 1
        self._prompt += len(prompt_ids)
        self._generated += sum(len(sample.token_ids) for sample in samples)
        self._busy += time.thread_time() - began
        return samples

    async def update_weights(self, payload: object, version: int) -> None:
        self._version = version

    def stats(self) -> EngineStats:
        """``busy_seconds`` is the CPU time of its own answers."""
        return EngineStats(
            generated_tokens=self._generated,
            prompt_tokens=self._prompt,
            finished_requests=self._requests,
            max_num_seqs=self.options.max_num_seqs,
            weight_version=self._version,
            seconds=time.monotonic() - self._started,
            busy_seconds=self._busy,
        )
