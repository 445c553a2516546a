"""Answer checking: right, bounded in time, usable from any thread."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from stepwiser.data.verifiers import ExactChecker, MathVerifyChecker, boxed_answer, unverifiable
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed{1} and then \boxed{2", "1"),
        ("nothing", None),
        (r"\boxed{", None),
    ],
)
def test_boxed_answer(text: str, answer: str | None) -> None:
    assert boxed_answer(text) == answer


def test_exact() -> None:
    assert ExactChecker().check("42", "42") is True
    assert ExactChecker().check("43", "42") is False
    assert ExactChecker().check(None, "42") is False


@pytest.fixture(scope="module")
def checker():
    checker = MathVerifyChecker(timeout_s=2.0)
    yield checker
    checker.close()


@pytest.mark.parametrize(
    ("answer", "reference", "verdict"),
    [
        ("0.5", r"\frac{1}{2}", True),
        ("1{,}000", "1000", True),
        ("7", "8", False),
        (None, "8", False),
    ],
)
def test_math_verify(checker, answer, reference, verdict) -> None:
    assert checker.check(answer, reference) is verdict


def test_math_verify_off_the_main_thread(checker) -> None:
    async def many() -> list[bool | None]:
        pairs = [(str(i), str(i % 2)) for i in range(4)]
        return await asyncio.gather(*(asyncio.to_thread(checker.check, *pair) for pair in pairs))

    assert asyncio.run(many()) == [True, True, False, False]


def test_a_hostile_answer_costs_its_timeout_and_the_next_check_works(checker) -> None:
    started = time.monotonic()
    verdict = checker.check("9^{9^{9^{9^{9}}}}", "9^{9^{9^{9^{8}}}}")
    assert verdict in (None, False)
    assert time.monotonic() - started < 60
    assert checker.check("0.25", r"\frac{1}{4}") is True


def test_unverifiable_references_are_found(checker) -> None:
    assert unverifiable(checker, ["12", ""]) == [1]


def test_a_killed_worker_does_not_make_an_answer_wrong(checker) -> None:
    assert checker.check("0.25x", r"\frac{x}{4}") is True
    (worker,) = checker._process._pool._processes.values()
    os.kill(worker.pid, signal.SIGKILL)
    assert checker.check("0.125x", r"\frac{x}{8}") is True


def test_a_worker_ends_with_its_killed_parent() -> None:
    code = (
        "from stepwiser.data.verifiers import MathVerifyChecker\n"
        "if __name__ == '__main__':\n"
        "    checker = MathVerifyChecker()\n"
        "    checker.check('x', '2x')\n"
        "    print(next(iter(checker._process._pool._processes)), flush=True)\n"
        "    input()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    gone, _ = psutil.wait_procs([worker], timeout=30)
    assert gone
