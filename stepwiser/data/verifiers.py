"""Problems, final answers, and checking them without blocking or hanging.

Math-Verify guards itself with signals, which only work on a main thread; and a hostile expression
can keep SymPy busy for minutes. So checks run in worker processes, where each has a main thread to
itself, under a deadline that ends the worker.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from stepwiser.data.spawned import ProcessDied, SpawnedProcess

REMEMBERED = 100_000
"""Verdicts that a checker keeps: those of the problems under way, not of all there ever were."""


def boxed_answer(response: str) -> str | None:
    """Content of the last complete `\\boxed{...}`, braces inside it balanced; None without one."""
    for match in reversed(list(re.finditer(r"\\boxed\s*\{", response))):
        depth = 1
        for i in range(match.end(), len(response)):
            depth += {"{": 1, "}": -1}.get(response[i], 0)
            if depth == 0:
                return response[match.end() : i].strip()
    return None


class AnswerChecker(Protocol):
    """Says whether a response's final answer is the reference; None where it cannot tell."""

    def check(self, answer: str | None, reference: str) -> bool | None: ...

    def knows(self, answer: str | None, reference: str) -> bool:
        """Whether `check` answers at once."""
        ...

    def verifies(self, reference: str) -> bool:
        """Whether any response could be checked against this reference."""
        ...

    def close(self) -> None:
        """Give back what is held; the checker may be asked again afterwards."""
        ...


async def check_all(
    checker: AnswerChecker, answers: Sequence[str | None], reference: str
) -> list[bool | None]:
    """`checker.check` of every answer, each once; off the event loop where it may take long."""
    verdicts = {a: checker.check(a, reference) for a in answers if checker.knows(a, reference)}
    if slow := [a for a in dict.fromkeys(answers) if a not in verdicts]:
        found = await asyncio.to_thread(lambda: [checker.check(a, reference) for a in slow])
        verdicts |= zip(slow, found, strict=True)
    return [verdicts[answer] for answer in answers]


class ExactChecker:
    """String equality after trimming: enough where answers are plain integers."""

    def check(self, answer: str | None, reference: str) -> bool | None:
        return answer is not None and answer.strip() == reference.strip()

    def knows(self, answer: str | None, reference: str) -> bool:
        """Comparing takes no time."""
        return True

    def verifies(self, reference: str) -> bool:
        """Anything but nothing can be compared."""
        return bool(reference.strip())

    def close(self) -> None:
        """Nothing is held."""


class MathVerifyChecker:
    """Math-Verify in one worker process, each check bounded in time.

    The same (answer, reference) pair is checked once: rollouts of one problem mostly agree.
    """

    def __init__(self, timeout_s: float = 5.0) -> None:
        self.timeout_s = timeout_s
        self._process: SpawnedProcess | None = None
        self._known: dict[tuple[str, str], bool | None] = {}
        self._one_at_a_time = threading.Lock()  # a queued check must not eat another's deadline

    def check(self, answer: str | None, reference: str) -> bool | None:
        """True, False, or None where the answer could not be parsed or checked in time."""
        if answer is None:
            return False
        if answer == reference:
            return True
        try:
            return self._known[answer, reference]
        except KeyError:
            return self._ask(answer, reference)

    def knows(self, answer: str | None, reference: str) -> bool:
        """Whether there is nothing to ask the worker."""
        return answer is None or answer == reference or (answer, reference) in self._known

    def verifies(self, reference: str) -> bool:
        """Whether a reference answer can be checked at all: it must equal itself."""
        return bool(reference.strip()) and self._ask(reference, reference) is True

    def _ask(self, answer: str, reference: str) -> bool | None:
        key = (answer, reference)
        with self._one_at_a_time:
            if key not in self._known:
                self._known[key] = self._ask_worker(answer, reference)
                if len(self._known) > REMEMBERED:
                    del self._known[next(iter(self._known))]
            return self._known[key]

    def _ask_worker(self, answer: str, reference: str) -> bool | None:
        arguments = (_verify, answer, reference, self.timeout_s)
        for _ in range(2):
            try:
                verdict: bool | None = self._worker().call(self.timeout_s + 5, *arguments)
                return verdict
            except TimeoutError:
                break
            except ProcessDied:
                # Killed, perhaps not for this answer: only a second death speaks against it.
                self.close()
        self.close()
        return None

    def _worker(self) -> SpawnedProcess:
        if self._process is None:
            self._process = SpawnedProcess()
            self._process.call(60, _verify, "1", "1", 30)  # import cost is not a check's
        return self._process

    def close(self) -> None:
        """End the worker, also one that hangs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()


def _verify(answer: str, reference: str, timeout_s: float) -> bool | None:
    from math_verify import parse, verify

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    seconds = max(1, round(timeout_s))
    gold = parse(f"\\boxed{{{reference}}}", parsing_timeout=seconds)
    parsed = parse(f"\\boxed{{{answer}}}", parsing_timeout=seconds)
    if not gold:
        return None
    if not parsed:
        return False
    return bool(verify(gold, parsed, timeout_seconds=seconds))


CHECKERS: dict[str, Callable[[float], AnswerChecker]] = {
    "exact": lambda timeout_s: ExactChecker(),
    "math_verify": MathVerifyChecker,
}
"""By the names of `answer_checker`, from the seconds that one check may take; a further one needs
an entry here and its name there."""


def make_checker(kind: str, timeout_s: float) -> AnswerChecker:
    """The checker a config asks for."""
    return CHECKERS[kind](timeout_s)


def unverifiable(checker: AnswerChecker, references: Sequence[str]) -> list[int]:
    """Indices of reference answers that no response could ever be checked against."""
    return [i for i, reference in enumerate(references) if not checker.verifies(reference)]
