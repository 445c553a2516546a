"""Answer checking: right, bounded in time, usable from any thread."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stepwiser.data.answers.boxes import boxed_answer
from stepwiser.data.verifiers import (
    ExactChecker,
    MathVerifyChecker,
    check_all,
    unverifiable,
    voices,
)
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


@pytest.mark.parametrize(
    ("reference", "verdict"), [("7", True), ("3, 5, 7", True), ("3", False), ("3, 5", False)]
)
def test_exact_of_several_boxes(reference: str, verdict: bool) -> None:
    answer = boxed_answer(r"\boxed{3}, \boxed{5} and \boxed{7}")
    assert ExactChecker().check(answer, reference) is verdict


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
    nested = "(" * 800 + "5" + ")" * 800
    bad = ["?", "N/A", "the answer is unknown", " ", nested, r"\frac{1}{", "half of 5"]
    good = ["0", "(C)", "Friday", "x^2", "3, 5", r"\emptyset", "5 dollars", "no solution"]
    assert unverifiable(checker, bad + good) == list(range(len(bad)))


def test_answers_that_are_the_same_have_one_voice(checker) -> None:
    answers = ["2", "0.5", None, r"\frac12", "x", "1/2", "0.5", "x^2/x"]
    found = voices(checker, answers)
    assert [found[answer] for answer in answers if answer is not None] == (
        ["2", "0.5", "0.5", "x", "0.5", "0.5", "x"]
    )


def test_answers_that_cannot_be_compared_cost_a_bounded_time() -> None:
    checker = MathVerifyChecker(timeout_s=0.2)
    try:
        checker.check("x", "2x")
        slow = [f"9^{{9^{{9^{{9^{i}}}}}}}" for i in range(2, 8)]
        started = time.monotonic()
        assert voices(checker, slow) == {answer: answer for answer in slow}
        # Without a bound 15 pairs, each with its deadline and perhaps a new process.
        assert checker.cannot_say.total() <= 12
        assert time.monotonic() - started < 90
    finally:
        checker.close()


def test_slow_checks_leave_the_event_loop_alone(checker) -> None:
    async def beats() -> int:
        task = asyncio.create_task(check_all(checker, ["9^{9^{9^{8}}}", "x"], "x+1"))
        count = 0
        while not task.done():
            await asyncio.sleep(0.05)
            count += 1
        assert task.result() == [None, False]
        return count

    assert asyncio.run(beats()) >= 10


def test_what_is_remembered_is_not_counted_twice() -> None:
    checker = ExactChecker(), MathVerifyChecker()
    for _ in range(3):
        assert checker[1].check("5 dollars", "5 cents") is None
    assert checker[1].cannot_say.total() == 1 and not checker[0].cannot_say


def test_a_killed_worker_does_not_make_an_answer_wrong(checker) -> None:
    assert checker.check("0.25x", r"\frac{x}{4}") is True
    worker = checker._process._process
    os.kill(worker.pid, signal.SIGKILL)
    assert checker.check("0.125x", r"\frac{x}{8}") is True


def test_nothing_is_kept_that_a_kill_would_leave(checker) -> None:
    assert checker.check("0.375x", r"\frac{3x}{8}") is True
    for process in (os.getpid(), checker._process._process.pid):
        maps = Path(f"/proc/{process}/maps").read_text().splitlines()
        # Other libraries have some that bear no name any more.
        assert not [m for m in maps if "/dev/shm/sem." in m and not m.endswith("(deleted)")]


def test_a_worker_ends_with_its_killed_parent() -> None:
    code = (
        "from stepwiser.data.verifiers import MathVerifyChecker\n"
        "if __name__ == '__main__':\n"
        "    checker = MathVerifyChecker()\n"
        "    checker.check('x', '2x')\n"
        "    print(checker._process._process.pid, flush=True)\n"
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
