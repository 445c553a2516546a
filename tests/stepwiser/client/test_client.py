"""The judge's client against a real server that fails in all the ways that servers do."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from stepwiser.client import AsyncJudgeClient, JudgeClient, JudgeError, Solution
from stepwiser.client.retries import Budget
from stepwiser.errors import UserError
from tests.stepwiser.client.faulty_server import (
    FaultyServer,
    Request,
    faulty_server,
    judged,
    refusal,
)
from tests.support.paths import ROOT


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server() as server:
        yield server


@pytest.fixture
def client(server: FaultyServer) -> Iterator[JudgeClient]:
    with JudgeClient(server.url, key="k", batch_size=2) as client:
        yield client


def test_it_loads_neither_ray_nor_vllm_nor_torch() -> None:
    code = (
        "import sys, stepwiser.client, stepwiser.client.rewards, stepwiser.client.verl\n"
        "heavy = {'ray', 'vllm', 'torch', 'transformers', 'numpy', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_asked_and_answered(server: FaultyServer, client: JudgeClient) -> None:
    server.rule = lambda r: r.answer(200, judged("Positive", "Negative") | {"new_field": 1})
    answer = client.judge("p", ["a", "b"], votes=3, temperature=0.5)
    assert [step.verdict for step in answer.steps] == ["Positive", "Negative"]
    assert (answer.first_negative, answer.model.weight_version) == (1, 4)
    ((_, request),) = server.requests
    assert (request.command, request.path) == ("POST", "/v1/judge")
    assert request.headers["Authorization"] == "Bearer k"
    assert request.body == {"problem": "p", "steps": ["a", "b"], "votes": 3, "temperature": 0.5}


def test_the_key_comes_from_the_environment(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPWISER_API_TOKEN", "of the environment\n")
    JudgeClient(server.url).judge("p", ["a"])
    monkeypatch.delenv("STEPWISER_API_TOKEN")
    JudgeClient(server.url).judge("p", ["a"])
    keys = [request.headers["Authorization"] for _, request in server.requests]
    assert keys == ["Bearer of the environment", None]


@pytest.mark.parametrize("status, kind", [(429, "overloaded"), (503, "draining")])
def test_the_servers_own_pause_is_kept(
    server: FaultyServer, client: JudgeClient, status: int, kind: str
) -> None:
    def rule(request: Request) -> None:
        if request.number == 0:
            request.answer(status, refusal(kind), Retry_After="1")
        else:
            request.answer(200, judged("Positive"))

    server.rule = rule
    assert client.judge("p", ["a"]).steps[0].score == 0.75
    (pause,) = server.pauses
    assert 1.0 <= pause < 3.0


def test_what_hangs_up_is_asked_again(server: FaultyServer, client: JudgeClient) -> None:
    server.rule = lambda r: r.answer(200, judged("Positive")) if r.number == 2 else r.hang_up()
    assert client.judge("p", ["a"]).steps[0].verdict == "Positive"
    first, second = server.pauses
    assert first > 0.12 and second > 0.25  # at least half of 0.25 and 0.5


@pytest.mark.parametrize(
    "status, kind", [(422, "invalid_request"), (401, "unauthorized"), (413, "too_large"),
                     (422, "no_verdict"), (504, "deadline_exceeded"), (500, "internal")]
)  # fmt: skip
def test_what_the_caller_has_to_mend_is_asked_once(
    server: FaultyServer, client: JudgeClient, status: int, kind: str
) -> None:
    server.rule = lambda r: r.answer(status, refusal(kind, "steps.1: is empty", "steps.1"))
    with pytest.raises(JudgeError, match=r"steps\.1: is empty \(\d+, \w+, request r1\)") as found:
        client.judge("p", ["a", ""])
    error = found.value
    assert (error.type, error.status, error.param, error.request_id) == (
        kind, status, "steps.1", "r1"
    )  # fmt: skip
    assert len(server.requests) == 1
    assert isinstance(error, UserError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.param, again.status) == (str(error), error.param, error.status)


def test_the_deadline_bounds_everything(server: FaultyServer) -> None:
    with JudgeClient(server.url, deadline_s=0.6) as client:
        server.rule = lambda r: time.sleep(3)
        began = time.monotonic()
        with pytest.raises(JudgeError, match="deadline_s=0.6"):
            client.judge("p", ["a"])
        assert time.monotonic() - began < 2
        # A pause that ends behind it is not waited for.
        server.rule = lambda r: r.answer(429, refusal("overloaded", "full"), Retry_After="30")
        began = time.monotonic()
        with pytest.raises(JudgeError, match="full") as found:
            client.judge("p", ["a"])
        assert found.value.retry_after_s == 30 and time.monotonic() - began < 2
        # Nor do many short tries go on behind it.
        server.rule = lambda r: r.hang_up()
        began = time.monotonic()
        with pytest.raises(JudgeError, match="connection_failed"):
            client.judge("p", ["a"])
        assert time.monotonic() - began < 2


def test_pauses_grow_and_end() -> None:
    now = 0.0
    budget = Budget("http://host", 100.0, retries=7, clock=lambda: now)
    lost = JudgeError("connection_failed", "gone")
    pauses = [budget.pause_s(lost) for _ in range(7)]
    for pause, longest in zip(pauses, (0.25, 0.5, 1, 2, 4, 8, 10), strict=True):
        assert longest / 2 <= pause <= longest
    with pytest.raises(JudgeError, match="gone"):
        budget.pause_s(lost)
    # What names its own end is waited for as long as there is time.
    full = JudgeError("overloaded", "full", status=429, retry_after_s=60.0)
    assert budget.pause_s(full) == 60.0
    now = 50.0
    with pytest.raises(JudgeError, match="full"):
        budget.pause_s(full)


def test_nobody_there_says_where_it_looked() -> None:
    with (
        faulty_server() as server,
        JudgeClient(server.url, retries=0) as client,
    ):
        address = server.url
        server.server_close()
        with pytest.raises(JudgeError, match=f"{address}.*curl {address}/health"):
            client.judge("p", ["a"])


@pytest.mark.parametrize("status", [200, 404, 502])
def test_another_service_is_told_as_one(server: FaultyServer, status: int) -> None:
    server.rule = lambda r: r.answer(status, b"<html>hello</html>")
    with (
        JudgeClient(server.url, retries=0) as client,
        pytest.raises(JudgeError, match="is this its address|give the address"),
    ):
        client.version()


def test_items_of_a_batch_end_by_themselves(server: FaultyServer, client: JudgeClient) -> None:
    """Of six: the second is refused, the third fails once in passing, the fifth spoils its batch
    before it is read."""
    failed: set[str] = set()

    def item(index: int, body: dict) -> dict:
        if body["problem"] == "p1":
            return {"index": index, "result": None} | refusal("invalid_request", "problem: long")
        if body["problem"] == "p2" and not failed:
            failed.add("p2")
            return {"index": index} | refusal("engine_failed")
        return {"index": index, "result": judged("Positive" if body["steps"] else None)}

    def rule(request: Request) -> None:
        items = request.body["items"]
        if any(one["problem"] == "p4" for one in items):
            request.answer(422, refusal("invalid_request", "items.0.steps.0: is empty"))
        else:
            found = [item(i, one) for i, one in enumerate(items)]
            request.answer(200, {"items": found, "failed": 0})

    server.rule = rule
    results = client.judge_many([Solution(f"p{i}", ["a"]) for i in range(6)], votes=2)
    errors = {i: one for i, one in enumerate(results) if isinstance(one, JudgeError)}
    assert sorted(errors) == [1, 4]
    assert "problem: long" in str(errors[1]) and "is empty" in str(errors[4])
    bodies = [request.body["items"] for _, request in server.requests]
    assert sorted(len(items) for items in bodies) == [1, 1, 1, 2, 2, 2]
    assert all(one["votes"] == 2 for items in bodies for one in items)
    assert client.judge_many([]) == []


def test_no_more_requests_at_a_time_than_said(server: FaultyServer) -> None:
    running, most = 0, 0

    def rule(request: Request) -> None:
        nonlocal running, most
        with server.lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with server.lock:
            running -= 1
        body = {"items": [{"index": 0, "result": judged("Positive")}], "failed": 0}
        request.answer(200, body)

    server.rule = rule
    with JudgeClient(server.url, batch_size=1, concurrency=3) as client:
        client.judge_many([Solution("p", ["a"])] * 12)
    assert most == 3 and len(server.requests) == 12


DONE = ("done", judged("Positive"))
STREAM = (("analysis", {"index": 0, "text": "so "}), ("step", judged("Positive")["steps"][0]), DONE)


def test_a_stream_is_followed_to_its_end(server: FaultyServer, client: JudgeClient) -> None:
    server.rule = lambda r: r.events(*STREAM) if r.number else r.answer(503, refusal("unavailable"))
    events = list(client.stream("p", ["a"]))
    assert [type(event).__name__ for event in events] == [
        "AnalysisEvent", "StepVerdict", "JudgeResponse"
    ]  # fmt: skip
    assert server.requests[1][1].body == {"problem": "p", "steps": ["a"], "stream": True}
    # One that breaks off is no answer, and is not begun again behind the caller's back.
    server.rule = lambda r: r.events(*STREAM[:2])
    begun = client.stream("p", ["a"])
    assert [type(next(begun)).__name__ for _ in range(2)] == ["AnalysisEvent", "StepVerdict"]
    with pytest.raises(JudgeError, match="ended before the last event"):
        next(begun)
    server.rule = lambda r: r.events(STREAM[0], ("error", refusal("deadline_exceeded", "late")))
    with pytest.raises(JudgeError, match="late"):
        list(client.stream("p", ["a"]))


def test_settings_that_cannot_be_are_refused() -> None:
    for settings, words in (
        ({"address": "localhost:8000"}, "begin it with http"),
        ({"address": "http://[::1"}, "address"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"key": "half\nof"}, "no header can hold"),
    ):
        with pytest.raises(UserError, match=words):
            JudgeClient(**settings)  # type: ignore[arg-type]


def test_threads_copies_and_forks_ask_alike(server: FaultyServer, client: JudgeClient) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: client.judge("p", ["a"]).first_negative, range(8)))
    assert found == [-1] * 8
    with pickle.loads(pickle.dumps(client)) as copy:
        assert copy.judge("p", ["a"]).first_negative == -1
    child = os.fork()
    if not child:
        os._exit(0 if client.judge("p", ["a"]).first_negative == -1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert client.judge("p", ["a"]).first_negative == -1
    client.close()
    assert client.judge("p", ["a"]).first_negative == -1  # as one that was just made


async def test_who_gives_up_ends_the_request(server: FaultyServer) -> None:
    server.rule = lambda r: time.sleep(2)
    async with AsyncJudgeClient(server.url) as client:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.judge_many([Solution("p", ["a"])] * 3)
        assert time.monotonic() - began < 1
