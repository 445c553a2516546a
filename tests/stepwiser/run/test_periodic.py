from __future__ import annotations

import threading
import time

import pytest

from stepwiser.run.periodic import repeating


def test_calls_come_while_the_block_runs_and_not_after() -> None:
    calls: list[str] = []
    enough = threading.Event()

    def call() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) >= 3:
            enough.set()

    with repeating(call, 0.01, "repeats"):
        assert enough.wait(30.0)
    made = len(calls)
    time.sleep(0.1)
    assert len(calls) == made and set(calls) == {"repeats"}


def test_a_block_that_fails_ends_the_calls() -> None:
    before = threading.active_count()
    with pytest.raises(KeyError), repeating(lambda: None, 60.0):
        raise KeyError
    assert threading.active_count() == before
