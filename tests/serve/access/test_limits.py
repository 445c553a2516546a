"""The queue in front of the replicas, and how often a key may ask."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from serve.access.queue import LONGEST_WAIT_S, FairQueue
from serve.access.rate import RateLimit
from serve.errors import ApiError


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Clients:
    """Requests that hold their place until they are told to end."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.running: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    def ask(self, name: str, client: str, limit: int | None = None) -> asyncio.Task[None]:
        end = self._ends[name] = asyncio.Event()

        async def request() -> None:
            async with self.queue.place(client, limit):
                self.running.append(name)
                await end.wait()
            self.running.remove(name)

        return asyncio.create_task(request())

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_free_places_go_round_the_clients() -> None:
    clients = Clients(FairQueue(places=1, max_waiting=10))
    for name in ("a1", "a2", "a3", "a4", "b1", "c1", "b2"):
        clients.ask(name, client=name[0])
    await settle()
    order = []
    for _ in range(7):
        (name,) = clients.running
        order.append(name)
        await clients.end(name)
    assert order == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]
    assert (clients.queue.running, clients.queue.waiting) == (0, 0)


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    clock = Clock()
    clients = Clients(FairQueue(places=2, max_waiting=2, clock=clock))
    for name in ("a1", "a2", "a3", "a4"):
        clients.ask(name, client="a")
    await settle()
    with pytest.raises(ApiError, match="the server is full") as error:
        await clients.ask("a5", client="a")
    assert error.value.status == 429
    assert error.value.failure.retry_after_s == 1.0  # nothing is known of the rate yet
    # One request every 4 seconds, with two in the line.
    for name in ("a1", "a2"):
        clock.now += 4
        await clients.end(name)
    for name in ("a6", "a7"):
        clients.ask(name, client="a")
    await settle()
    assert clients.queue.waiting == 2
    # When half of the line is gone, and after each other.
    assert [clients.queue.seconds_to_wait() for _ in range(3)] == [4.0, 8.0, 12.0]
    clock.now += 4
    assert clients.queue.seconds_to_wait() == 12.0
    for _ in range(50):
        assert clients.queue.seconds_to_wait() <= LONGEST_WAIT_S
    clock.now += 1000
    assert clients.queue.seconds_to_wait() == 4.0


async def test_one_client_cannot_fill_the_line_of_all() -> None:
    clients = Clients(FairQueue(places=1, max_waiting=4))
    greedy = [clients.ask(f"a{i}", client="a") for i in range(5)]
    await settle()
    clients.ask("b1", client="b")
    clients.ask("b2", client="b")
    await settle()
    # The newest of the longest line gave way, until the lines were as long as each other.
    assert [task.done() for task in greedy] == [False, False, False, True, True]
    assert isinstance(greedy[4].exception(), ApiError)
    with pytest.raises(ApiError):
        await clients.ask("b3", client="b")
    await clients.end("a0", "a1", "b1", "a2", "b2")
    assert clients.queue.running == 0


async def test_a_client_holds_no_more_places_than_its_key_says() -> None:
    clients = Clients(FairQueue(places=4, max_waiting=10))
    for i in range(3):
        clients.ask(f"a{i}", client="a", limit=1)
    clients.ask("b0", client="b")
    await settle()
    assert clients.running == ["a0", "b0"]
    await clients.end("a0")
    assert clients.running == ["b0", "a1"]


async def test_who_leaves_the_line_or_its_place_leaves_no_trace() -> None:
    clients = Clients(FairQueue(places=1, max_waiting=10))
    running, waiting, last = (clients.ask(f"a{i}", client="a") for i in range(3))
    await settle()
    waiting.cancel()
    await settle()
    assert clients.queue.waiting == 1
    # Cancelled in the very moment in which it is given the place.
    running.cancel()
    last.cancel()
    await settle()
    assert (clients.queue.running, clients.queue.waiting) == (0, 0)
    clients.ask("a9", client="a")
    await settle()
    assert clients.running[-1] == "a9"


async def test_a_closed_queue_finishes_what_it_has() -> None:
    clients = Clients(FairQueue(places=1, max_waiting=10))
    clients.ask("a1", client="a")
    clients.ask("a2", client="a")
    await settle()
    clients.queue.close()
    with pytest.raises(ApiError, match="about to stop") as error:
        await clients.ask("a3", client="a")
    assert error.value.status == 503
    await clients.end("a1", "a2")
    assert clients.queue.running == 0


async def test_a_batch_is_refused_whole() -> None:
    clients = Clients(FairQueue(places=2, max_waiting=3))
    clients.queue.refuse_unless_room("a", 5)
    clients.ask("a1", client="a")
    await settle()
    with pytest.raises(ApiError, match="room for 4 of 5") as error:
        clients.queue.refuse_unless_room("a", 5)
    assert error.value.status == 429
    with pytest.raises(ApiError, match="split the batch") as error:
        clients.queue.refuse_unless_room("a", 6)
    assert error.value.status == 422


def test_a_rate_counts_the_last_minute() -> None:
    clock = Clock()
    rate = RateLimit(clock)
    assert rate.take("a", 3, 2) == 0.0
    clock.now = 20
    assert rate.take("a", 3) == 0.0
    assert rate.take("a", 3) == 40.0  # when those of second 0 leave
    assert rate.take("a", 3, 3) == 60.0  # and that of second 20
    assert rate.take("b", 3) == 0.0
    assert rate.take("a", 3, 4) == float("inf")
    clock.now = 60
    assert rate.take("a", 3, 2) == 0.0
    assert rate.take("a", 3) > 0
