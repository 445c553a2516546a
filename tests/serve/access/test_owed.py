"""What is answered, and how, when a server ends."""

from __future__ import annotations

import asyncio
import time

import pytest

from serve.access.owed import OwedAnswers
from serve.errors import ApiError


async def _request(owed: OwedAnswers, seconds: float, deadline_s: float = 60) -> str:
    """As the gate and the routes treat one that takes so many seconds."""
    with owed.request():
        try:
            async with owed.within(deadline_s):
                await asyncio.sleep(seconds)
        except ApiError as error:
            await asyncio.sleep(0.02)  # the answer is sent
            return error.failure.type
        return "answered"


async def test_what_is_done_in_time_is_answered_and_the_rest_is_told_so() -> None:
    owed = OwedAnswers()
    tasks = [asyncio.create_task(_request(owed, seconds)) for seconds in (0.05, 0.1, 30, 30, 30)]
    late = asyncio.create_task(_request(owed, 30, deadline_s=0.1))
    await asyncio.sleep(0)
    began = time.monotonic()
    assert await owed.finish(0.4) == 3
    assert time.monotonic() - began < 2
    assert all(task.done() for task in tasks), "finish waits until the refusals are sent"
    assert [task.result() for task in tasks] == ["answered"] * 2 + ["draining"] * 3
    assert late.result() == "deadline_exceeded"
    # What comes to a server that has given up is not begun.
    assert await _request(owed, 30) == "draining"


async def test_nothing_is_given_up_where_all_is_done() -> None:
    owed = OwedAnswers()
    tasks = [asyncio.create_task(_request(owed, 0.05)) for _ in range(5)]
    await asyncio.sleep(0)
    finishing = asyncio.create_task(owed.finish(30))
    await asyncio.sleep(0.01)
    newer = asyncio.create_task(_request(owed, 0.5))
    assert await finishing == 0
    assert not newer.done(), "what came later is not waited for"
    assert {await task for task in (*tasks, newer)} == {"answered"}


async def test_a_timeout_of_the_work_itself_is_no_deadline() -> None:
    owed = OwedAnswers()
    with pytest.raises(TimeoutError, match="of the work"):
        async with owed.within(60):
            raise TimeoutError("of the work")
