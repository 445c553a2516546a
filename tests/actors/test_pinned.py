"""What was pinned for an actor is there again after a restart, however large it is."""

from __future__ import annotations

import os
import signal

import pytest
import ray

from actors.pinned import Pinned

ROWS = [f"row {number} " + "x" * 1000 for number in range(1000)]


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Borrower:
    def __init__(self, rows: Pinned[list[str]]) -> None:
        self.rows = rows.get()

    async def look(self) -> tuple[int, list[str]]:
        return os.getpid(), self.rows[:2]


@pytest.mark.usefixtures("ray_local")
def test_a_restarted_actor_has_it_again() -> None:
    borrower = Borrower.remote(Pinned(ROWS))
    pid, rows = ray.get(borrower.look.remote())
    for _ in range(2):
        os.kill(pid, signal.SIGKILL)
        before = pid
        pid, again = ray.get(borrower.look.remote(), timeout=60)
        assert pid != before and again == rows == ROWS[:2]
