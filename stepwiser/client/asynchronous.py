"""`AsyncJudgeClient`: the routes of a judge as coroutines, and solutions by the hundred."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Self, TypeVar, Unpack

import httpx
from pydantic import BaseModel, ValidationError

from stepwiser.client.errors import (
    JudgeError,
    connection_failed,
    error_of_detail,
    error_of_reply,
    unreadable,
)
from stepwiser.client.retries import Budget
from stepwiser.client.types import (
    AnalysisEvent,
    ErrorBody,
    JudgeBatchItem,
    JudgeBatchResponse,
    JudgeOptions,
    JudgeResponse,
    Options,
    ScoreOptions,
    ScoreResponse,
    Solution,
    StepVerdict,
    Version,
)
from stepwiser.errors import UserError

A = TypeVar("A", bound=BaseModel)
T = TypeVar("T")

KEY_VARIABLE = "STEPWISER_API_TOKEN"
CONNECT_S = 10.0
"""Longest wait for a connection; what comes after it has the deadline alone."""
TOO_LARGE = frozenset({413, 422})
"""Status of a batch that may be answered in parts, or of which one item is at fault."""

Event = AnalysisEvent | StepVerdict | JudgeResponse
"""Of a stream: analyses while they are written, a verdict a step, at the end the whole answer
without texts."""


class AsyncJudgeClient:
    """A served judge. Use it as `async with`, or call `close`; it belongs to one event loop.

    Every method raises JudgeError where a request got no answer. What passes (429, 502, 503, a
    server that cannot be reached or hangs up) is sent again first, as the server's `Retry-After`
    says or after growing pauses: judging changes nothing. What the caller has to mend is not.
    """

    def __init__(
        self,
        address: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        deadline_s: float = 600.0,
        retries: int = 6,
        batch_size: int = 16,
        concurrency: int = 4,
    ) -> None:
        """
        Args:
            address: where `stepwiser serve` listens, without a route.
            key: of `stepwiser keys add`; default: what STEPWISER_API_TOKEN says, else none.
            deadline_s: longest time for a request, all tries and pauses together.
            retries: further tries where the server does not say when to come back.
            batch_size: solutions of one request of `judge_many`, at most 256.
            concurrency: requests under way at a time in `judge_many` and `score_many`.

        Raises UserError for an address that is none, and numbers that are too small.
        """
        if not address.startswith(("http://", "https://")):
            raise UserError(f"address {address!r}: begin it with http:// or https://")
        for name, number in (("batch_size", batch_size), ("concurrency", concurrency)):
            if number < 1:
                raise UserError(f"{name}={number}: must be at least 1")
        self.address = address.rstrip("/")
        self._deadline_s = deadline_s
        self._retries = retries
        self._batch_size = batch_size
        self._concurrency = concurrency
        self._http = _connections(self.address, key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    # --- one solution -----------------------------------------------------------------------------

    async def judge(
        self,
        problem: str,
        steps: list[str] | None = None,
        *,
        response: str | None = None,
        **options: Unpack[JudgeOptions],
    ) -> JudgeResponse:
        """Verdict, score and analysis of every step of a solution, given as steps or whole."""
        body = _body(Solution(problem, steps, response), options)
        return await self._ask(JudgeResponse, "POST", "/v1/judge", body)

    async def score(
        self,
        problem: str,
        steps: list[str] | None = None,
        *,
        response: str | None = None,
        **options: Unpack[ScoreOptions],
    ) -> ScoreResponse:
        """One number for a solution. A step that gets no verdict in three tries is a JudgeError of
        type `no_verdict`: no number can stand for that."""
        body = _body(Solution(problem, steps, response), options)
        return await self._ask(ScoreResponse, "POST", "/v1/score", body)

    async def version(self) -> Version:
        """What is served, and by which rule its judge's labels were made."""
        return await self._ask(Version, "GET", "/version")

    async def stream(
        self,
        problem: str,
        steps: list[str] | None = None,
        *,
        response: str | None = None,
        **options: Unpack[JudgeOptions],
    ) -> AsyncGenerator[Event]:
        """`judge` as it comes about. Sent again as long as nothing has come; what ends before its
        last event raises JudgeError. Closing the iterator takes the work out of the engine."""
        body = _body(Solution(problem, steps, response), options) | {"stream": True}
        budget = self._budget()
        while True:
            try:
                async with aclosing(self._events(body, budget)) as events:
                    began = False
                    async for event in events:
                        began = True
                        yield event
                return
            except JudgeError as error:
                if began:
                    raise
                await asyncio.sleep(budget.pause_s(error))

    # --- many solutions ---------------------------------------------------------------------------

    async def judge_many(
        self, solutions: Sequence[Solution], **options: Unpack[JudgeOptions]
    ) -> list[JudgeResponse | JudgeError]:
        """What became of each solution, in their order; the deadline is each request's own.

        In batches, a few of them under way at a time. An item that failed for a passing reason is
        sent again alone, and where a batch is refused for one of its items, the others are judged.
        """
        gate = asyncio.Semaphore(self._concurrency)
        bodies = [_body(solution, options) for solution in solutions]

        async def piece(items: list[dict[str, Any]]) -> list[JudgeResponse | JudgeError]:
            async with gate:
                return await self._batch(items, self._budget())

        size = self._batch_size
        pieces = [bodies[at : at + size] for at in range(0, len(bodies), size)]
        return [one for found in await _gathered(map(piece, pieces)) for one in found]

    async def score_many(
        self, solutions: Sequence[Solution], **options: Unpack[ScoreOptions]
    ) -> list[ScoreResponse | JudgeError]:
        """What became of each solution, in their order, as many at a time as `judge_many` has."""
        gate = asyncio.Semaphore(self._concurrency * self._batch_size)

        async def one(solution: Solution) -> ScoreResponse | JudgeError:
            async with gate:
                try:
                    return await self.score(
                        solution.problem, solution.steps, response=solution.response, **options
                    )
                except JudgeError as error:
                    return error

        return await _gathered(map(one, solutions))

    async def _batch(
        self, items: list[dict[str, Any]], budget: Budget
    ) -> list[JudgeResponse | JudgeError]:
        try:
            answer = await self._ask(
                JudgeBatchResponse, "POST", "/v1/judge/batch", {"items": items}, budget
            )
        except JudgeError as error:
            if len(items) == 1 or error.status not in TOO_LARGE:
                return [error] * len(items)
            half = len(items) // 2
            parts = (items[:half], items[half:])
            return [one for part in parts for one in await self._batch(part, budget)]
        found = [_outcome(item) for item in answer.items]
        passing = {
            i: error
            for i, error in enumerate(found)
            if isinstance(error, JudgeError) and error.is_passing
        }
        if passing:
            try:
                await asyncio.sleep(budget.pause_s(next(iter(passing.values()))))
            except JudgeError:
                return found
            again = await self._batch([items[i] for i in passing], budget)
            for i, one in zip(passing, again, strict=True):
                found[i] = one
        return found

    # --- one request ------------------------------------------------------------------------------

    def _budget(self) -> Budget:
        return Budget(self.address, self._deadline_s, self._retries)

    async def _ask(
        self,
        kind: type[A],
        method: str,
        route: str,
        body: dict[str, Any] | None = None,
        budget: Budget | None = None,
    ) -> A:
        budget = budget or self._budget()
        while True:
            try:
                reply = await self._within(budget, self._http.request(method, route, json=body))
                if reply.is_success:
                    return self._read(kind, reply.content)
                raise error_of_reply(reply)
            except JudgeError as error:
                await asyncio.sleep(budget.pause_s(error))

    async def _events(self, body: dict[str, Any], budget: Budget) -> AsyncGenerator[Event]:
        """Of one try."""
        request = self._http.build_request("POST", "/v1/judge", json=body)
        reply = await self._within(budget, self._http.send(request, stream=True))
        async with aclosing(reply):
            if not reply.is_success:
                await self._within(budget, reply.aread())
                raise error_of_reply(reply)
            lines, name = reply.aiter_lines(), ""
            while True:
                line = await self._within(budget, anext(lines, None))
                if line is None:
                    why = "its stream ended before the last event"
                    raise connection_failed(self.address, why)
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data" and name == "error":
                    raise error_of_detail(self._read(ErrorBody, value).error)
                elif field == "data":
                    yield self._read(_EVENTS[name], value)
                    if name == "done":
                        return

    async def _within(self, budget: Budget, work: Awaitable[T]) -> T:
        """The result of some part of a request; raises JudgeError, also where the time is up."""
        try:
            async with asyncio.timeout(budget.left_s):
                return await work
        except TimeoutError:
            raise budget.exceeded from None
        except httpx.RequestError as error:
            raise connection_failed(self.address, str(error) or type(error).__name__) from error

    def _read(self, kind: type[A], data: bytes | str) -> A:
        try:
            return kind.model_validate_json(data)
        except ValidationError as error:
            raise unreadable(self.address, error) from error


_EVENTS: dict[str, type[AnalysisEvent] | type[StepVerdict] | type[JudgeResponse]] = {
    "analysis": AnalysisEvent,
    "step": StepVerdict,
    "done": JudgeResponse,
}


def _connections(address: str, key: str | None) -> httpx.AsyncClient:
    """Raises UserError for an address or a key that no request can be made of."""
    key = (os.environ.get(KEY_VARIABLE, "") if key is None else key).strip()
    if not key.isascii() or not key.isprintable():
        raise UserError(f"key: has characters that no header can hold; look at {KEY_VARIABLE}")
    try:
        return httpx.AsyncClient(
            base_url=address,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            # As many as there are requests under way, which the caller bounds.
            limits=httpx.Limits(max_connections=None),
        )
    except httpx.InvalidURL as error:
        raise UserError(f"address {address!r}: {error}") from error


def _body(solution: Solution, options: Options) -> dict[str, Any]:
    given = {name: value for name, value in solution._asdict().items() if value is not None}
    return given | options


def _outcome(item: JudgeBatchItem) -> JudgeResponse | JudgeError:
    if item.result is not None:
        return item.result
    assert item.error is not None
    return error_of_detail(item.error)


async def _gathered(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; what is cancelled cancels all."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in work]
    return [task.result() for task in tasks]
