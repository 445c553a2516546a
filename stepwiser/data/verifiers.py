"""Verdicts on final answers, without blocking or hanging: True, False, or None for "cannot say".

Most answers are compared at once (`equality`). The rest goes to a worker process (`bounded`): what
is mathematics to Math-Verify, everything to a verifier of one's own. A check that fails is None and
counted by its reason; it never makes an answer wrong.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from stepwiser.data.answers.bounded import BoundedProcess, Job, Outcome
from stepwiser.data.answers.boxes import blank, boxed_answer, collection, last_box, says_nothing
from stepwiser.data.answers.equality import compare_texts, readable_at_once
from stepwiser.data.answers.numbers import cleaned
from stepwiser.data.answers.own_verifier import BATCH, ask_function, ask_service, load_function
from stepwiser.errors import UserError

__all__ = ["AnswerChecker", "boxed_answer", "check_all", "make_checker", "unverifiable", "voices"]

REMEMBERED = 100_000
"""Verdicts that a checker keeps: those of the problems under way, not of all there ever were."""

PATIENCE = 2
"""Comparisons with others that may end in None before an answer is a voice of its own."""

logger = logging.getLogger(__name__)


class AnswerChecker(Protocol):
    """Says whether a response's final answer is the reference; None where it cannot tell.

    `problem` is the problem's text, which only some verifiers read.
    """

    cannot_say: Counter[str]
    """Checks that ended in None, by reason; a check that was remembered is counted once."""

    def check(self, answer: str | None, reference: str, problem: str = "") -> bool | None: ...

    def check_many(
        self, answers: Sequence[str | None], reference: str, problem: str = ""
    ) -> list[bool | None]:
        """`check` of each, in fewer round trips."""
        ...

    def knows(self, answer: str | None, reference: str, problem: str = "") -> bool:
        """Whether `check` answers at once."""
        ...

    def verifies(self, reference: str) -> bool:
        """Whether any response could be checked against this reference."""
        ...

    def close(self) -> None:
        """Give back what is held; the checker may be asked again afterwards."""
        ...


async def check_all(
    checker: AnswerChecker, answers: Sequence[str | None], reference: str, problem: str = ""
) -> list[bool | None]:
    """`checker.check` of every answer, each once; off the event loop where it may take long."""
    if all(checker.knows(answer, reference, problem) for answer in set(answers)):
        return checker.check_many(answers, reference, problem)
    return await asyncio.to_thread(checker.check_many, answers, reference, problem)


def voices(
    checker: AnswerChecker, answers: Sequence[str | None], problem: str = ""
) -> dict[str, str]:
    """Every answer with the first one that the checker takes for the same, for a majority vote.

    An answer whose comparisons keep ending in None is not compared any further, so that a vote
    costs at most `PATIENCE` deadlines an answer. It may take that long: not for an event loop.
    """
    left = [answer for answer in dict.fromkeys(answers) if answer is not None]
    found: dict[str, str] = {}
    doubts: Counter[str] = Counter()
    while left:
        voice, *others = left
        found[voice] = voice
        left = []
        asked = [other for other in others if doubts[other] < PATIENCE > doubts[voice]]
        same = dict(zip(asked, checker.check_many(asked, voice, problem), strict=True))
        for other in others:
            if same.get(other):
                found[other] = voice
            else:
                left.append(other)
                doubts[other] += other in same and same[other] is None
    return found


class ExactChecker:
    """String equality after trimming: enough where answers are plain integers."""

    def __init__(self) -> None:
        self.cannot_say: Counter[str] = Counter()

    def check(self, answer: str | None, reference: str, problem: str = "") -> bool | None:
        """Of several boxes all together or the last; any answer but the reference is wrong."""
        if answer is None:
            return False
        return reference.strip() in (answer.strip(), last_box(answer), collection(answer))

    def check_many(
        self, answers: Sequence[str | None], reference: str, problem: str = ""
    ) -> list[bool | None]:
        """`check` of each."""
        return [self.check(answer, reference) for answer in answers]

    def knows(self, answer: str | None, reference: str, problem: str = "") -> bool:
        """Comparing takes no time."""
        return True

    def verifies(self, reference: str) -> bool:
        """Anything but nothing can be compared."""
        return not says_nothing(reference)

    def close(self) -> None:
        """Nothing is held."""


class _ProcessChecker:
    """Asks a bounded process, and remembers what it said.

    The same question is asked once: rollouts of one problem mostly agree.
    """

    batch = 1
    """Answers of one job."""

    def __init__(self, process: BoundedProcess, job: Job) -> None:
        self.cannot_say: Counter[str] = Counter()
        self._process = process
        self._job = job
        self._known: dict[tuple[str, str, str], bool | None] = {}
        self._one_at_a_time = threading.Lock()  # a queued check must not eat another's deadline

    def check(self, answer: str | None, reference: str, problem: str = "") -> bool | None:
        """True, False, or None where it could not be found out in time."""
        return self.check_many([answer], reference, problem)[0]

    def check_many(
        self, answers: Sequence[str | None], reference: str, problem: str = ""
    ) -> list[bool | None]:
        """`check` of each; those that are not known go to the process together."""
        verdicts: dict[str | None, bool | None] = {None: False}
        waiting: list[str] = []
        for answer in dict.fromkeys(answers):
            if answer is None:
                continue
            if (outcome := self._at_once(answer, reference, problem)) is None:
                waiting.append(answer)
            else:
                verdicts[answer] = outcome.verdict
                if outcome.reason:
                    self._remember((answer, reference, problem), outcome)
        if waiting:
            verdicts.update(self._ask(waiting, reference, problem))
        return [verdicts[answer] for answer in answers]

    def knows(self, answer: str | None, reference: str, problem: str = "") -> bool:
        """Whether there is nothing to ask the process."""
        return answer is None or self._at_once(answer, reference, problem) is not None

    def close(self) -> None:
        """End the process, also one that hangs."""
        self._process.close()

    def _at_once(self, answer: str, reference: str, problem: str) -> Outcome | None:
        """The outcome without asking; None where it must be asked."""
        key = (answer, reference, problem)
        return Outcome(self._known[key]) if key in self._known else None

    def _ask(self, answers: list[str], reference: str, problem: str) -> dict[str, bool | None]:
        with self._one_at_a_time:
            found = {}
            for answer in answers:
                if (outcome := self._at_once(answer, reference, problem)) is not None:
                    found[answer] = outcome.verdict
            missing = [answer for answer in answers if answer not in found]
            batches = [missing[i : i + self.batch] for i in range(0, len(missing), self.batch)]
            done = self._process.run(self._job, batches, reference, problem)
            outcomes = [outcome for part in done for outcome in part]
            for answer, outcome in zip(missing, outcomes, strict=True):
                found[answer] = outcome.verdict
                self._remember((answer, reference, problem), outcome)
            return found

    def _remember(self, key: tuple[str, str, str], outcome: Outcome) -> None:
        self._known[key] = outcome.verdict
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        if outcome.verdict is None:
            self.cannot_say[outcome.reason] += 1


class MathVerifyChecker(_ProcessChecker):
    """Equality of answers as people mean it, by Math-Verify where it takes mathematics."""

    def __init__(self, timeout_s: float = 5.0) -> None:
        process = BoundedProcess(timeout_s, warm_up=_warm_up, quiet=True)
        super().__init__(process, _compare)
        self._readable: dict[str, bool] = {}

    def verifies(self, reference: str) -> bool:
        """Whether a reference says something, and can be read in time."""
        if says_nothing(reference):
            return False
        readable = readable_at_once(reference)
        if readable is not None:
            return readable
        with self._one_at_a_time:
            if reference not in self._readable:
                ((outcome,),) = self._process.run(_read, [[reference]], "", "")
                self._readable[reference] = outcome.verdict is True
            return self._readable[reference]

    def _at_once(self, answer: str, reference: str, problem: str) -> Outcome | None:
        # One key for both orders: a deadline missed under load must not tell them apart.
        first, second = sorted((answer, reference))
        if (known := super()._at_once(first, second, "")) is not None:
            return known
        compared = compare_texts(answer, reference)
        if not compared.final:
            return None
        return Outcome(compared.verdict, compared.reason if compared.verdict is None else "")

    def _remember(self, key: tuple[str, str, str], outcome: Outcome) -> None:
        first, second = sorted(key[:2])
        super()._remember((first, second, ""), outcome)


def _warm_up() -> None:
    from stepwiser.data.answers.symbolic import same_mathematics

    same_mathematics("x", "2x")


def _compare(answers: Sequence[str], reference: str, problem: str) -> list[Outcome]:
    from stepwiser.data.answers.symbolic import same_mathematics

    found = []
    for answer in answers:
        verdict = same_mathematics(*compare_texts(answer, reference).texts)
        found.append(Outcome(verdict, "" if verdict is not None else "not to be read or decided"))
    return found


def _read(answers: Sequence[str], reference: str, problem: str) -> list[Outcome]:
    from stepwiser.data.answers.symbolic import is_readable

    found = (is_readable(cleaned(collection(answer))) for answer in answers)
    return [Outcome(True) if good else Outcome(None, "reference not to be read") for good in found]


class OwnChecker(_ProcessChecker):
    """A person's own verifier: `module:function`, or the address of a service.

    Raises UserError where the function cannot be imported, naming what is wrong with it.
    """

    def __init__(self, path: str, timeout_s: float) -> None:
        self._path = path
        if path.startswith(("http://", "https://")):
            self.batch = BATCH
            process = BoundedProcess(timeout_s, warm_up=_nothing, quiet=False)
            super().__init__(process, partial(ask_service, path, timeout_s))
            return
        process = BoundedProcess(timeout_s, warm_up=_nothing, quiet=False)
        super().__init__(process, partial(ask_function, path))
        try:
            process.call(partial(_load, path))
        except Exception as error:
            self.close()
            raise UserError(
                f"answer_checker={path} cannot be imported: {type(error).__name__}: {error}. Give "
                "module:function of a module on PYTHONPATH (on a cluster, on that of every node)"
            ) from error

    def verifies(self, reference: str) -> bool:
        """Anything but nothing: what a reference is, only the verifier knows."""
        return not blank(reference)

    def _remember(self, key: tuple[str, str, str], outcome: Outcome) -> None:
        if outcome.verdict is not None:  # what failed once may work the next time
            super()._remember(key, outcome)
            return
        if outcome.reason not in self.cannot_say:
            logger.warning("answer_checker=%s: %s (told once)", self._path, outcome.reason)
        self.cannot_say[outcome.reason] += 1


def _nothing() -> None:
    """A verifier of one's own is imported with its first question, or when it is made."""


def _load(path: str) -> None:
    load_function(path)


CHECKERS: dict[str, Callable[[float], AnswerChecker]] = {
    "exact": lambda timeout_s: ExactChecker(),
    "math_verify": MathVerifyChecker,
}
"""By the names of `answer_checker`, from the seconds that one check may take; a further one needs
an entry here and its name in `stepwiser.config.base`."""


def make_checker(kind: str, timeout_s: float) -> AnswerChecker:
    """The checker a config asks for: a name of `CHECKERS`, or a verifier of one's own.

    Raises UserError where that cannot be imported.
    """
    make = CHECKERS.get(kind)
    return make(timeout_s) if make else OwnChecker(kind, timeout_s)


def unverifiable(checker: AnswerChecker, references: Sequence[str]) -> list[int]:
    """Indices of reference answers that no response could ever be checked against."""
    return [i for i, reference in enumerate(references) if not checker.verifies(reference)]
