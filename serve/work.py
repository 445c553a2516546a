"""What happens to a request between its route and a replica: limits, its place, its deadline."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from serve.access.gate import ANONYMOUS
from serve.access.keys import Key
from serve.access.owed import OwedAnswers
from serve.access.queue import FairQueue
from serve.access.rate import RateLimit
from serve.dispatch import Replicas
from serve.errors import ApiError, error_body
from serve.event_stream import event
from serve.judging.scores import reduce_scores, step_scores
from serve.judging.service import TRIES, AnalysisEvent
from serve.metrics import Metrics
from serve.protocols.chat import ChatRequest, ChatResult, chunk_bodies, chunk_head
from serve.schema import (
    JudgeBatchItem,
    JudgeCard,
    JudgeRequest,
    JudgeResponse,
    Reduction,
    ScoreResponse,
    Solution,
    StepVerdict,
)
from serve.solving.schema import KeptChunk, SolveRequest, SolveResponse, TriedChunk

CARD_S = 1.0
"""How long what a probe said holds."""
PROBE_S = 6.0
"""Longest wait for a probe, a little above the replica's own: who asks is not to wait for the start
of a replica."""


class Work:
    """The requests of one ingress."""

    def __init__(
        self,
        replicas: Replicas,
        queue: FairQueue,
        owed: OwedAnswers,
        metrics: Metrics,
        deadline_s: float,
        policies: Replicas | None = None,
    ) -> None:
        """``policies``: those that solve; None: nobody does."""
        self.queue = queue
        self.owed = owed
        self.metrics = metrics
        self.deadline_s = deadline_s
        self._replicas = replicas
        self._policies = policies
        self._rate = RateLimit()
        self._probed: tuple[float, JudgeCard | ApiError] | None = None
        self._probing = asyncio.Lock()

    # --- one solution and many --------------------------------------------------------------------

    async def judge(self, request: Solution, key: Key | None) -> JudgeResponse:
        """Judge one solution; raises ApiError."""
        self.count(key)
        return await self._judge(request, key, None)

    async def batch(
        self, requests: Sequence[JudgeRequest], key: Key | None, request_id: str
    ) -> list[JudgeBatchItem]:
        """Judge solutions side by side. Raises ApiError where there is no room for all of them;
        what becomes of each is in its item."""
        self.count(key, len(requests))

        async def one(index: int) -> JudgeBatchItem:
            try:
                result = await self._judge(requests[index], key, None)
            except ApiError as error:
                detail = error_body(error.failure, request_id).error
                return JudgeBatchItem(index=index, error=detail)
            return JudgeBatchItem(index=index, result=result)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(i)) for i in range(len(requests))]
        return [task.result() for task in tasks]

    async def score_all(
        self, solutions: Sequence[Solution], key: Key | None
    ) -> tuple[list[list[float]], list[JudgeResponse]]:
        """The step scores of every solution; raises ApiError where one of them has none."""
        self.count(key, len(solutions))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._judge(solution, key, i if len(solutions) > 1 else None))
                    for i, solution in enumerate(solutions)
                ]
        except* ApiError as errors:
            first = errors.exceptions[0]
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None
        responses = [task.result() for task in tasks]
        return [_scores(response, i) for i, response in enumerate(responses)], responses

    async def score(
        self, request: Solution, reduction: Reduction, key: Key | None
    ) -> ScoreResponse:
        """One number; raises ApiError."""
        (scores,), (response,) = await self.score_all([request], key)
        return ScoreResponse(
            score=reduce_scores(scores, reduction),
            step_scores=scores,
            first_negative=response.first_negative,
            model=response.model,
            usage=response.usage,
        )

    async def chat(self, request: ChatRequest, key: Key | None) -> ChatResult:
        """Continue a conversation; raises ApiError."""
        self.count(key)
        result: ChatResult = await self._within(self.deadline_s, "chat", request, key)
        return result

    async def solve(self, request: SolveRequest, key: Key | None) -> SolveResponse:
        """Solve one problem; raises ApiError."""
        tried: list[TriedChunk] = []
        async with (
            self.owed.within(self.seconds_of(request)),
            aclosing(self._search(request, key)) as events,
        ):
            async for item in events:
                if isinstance(item, TriedChunk):
                    tried.append(item)
                elif isinstance(item, SolveResponse):
                    return item.model_copy(update={"tried": tried})
        raise AssertionError("a search ends with its solution or an error")

    # --- as it comes about ------------------------------------------------------------------------

    async def judge_events(self, request: JudgeRequest, key: Key | None) -> AsyncGenerator[bytes]:
        """Events of `EventStream`; raises ApiError."""
        self.count(key)
        async with (
            self.queue.place(*_client(key)),
            aclosing(self._replicas.stream("judge_stream", request)) as lists,
        ):
            async for found in lists:
                for item in found:
                    if isinstance(item, AnalysisEvent):
                        data = json.dumps({"index": item.index, "text": item.text})
                        yield event("analysis", data)
                    elif isinstance(item, StepVerdict):
                        yield event("step", item.model_dump_json())
                    else:
                        self.metrics.judged(item)
                        yield event("done", item.model_dump_json())

    async def chat_events(self, request: ChatRequest, key: Key | None) -> AsyncGenerator[bytes]:
        """Lines of OpenAI's stream; raises ApiError."""
        self.count(key)
        head = chunk_head((await self.card()).model.name)
        async with (
            self.queue.place(*_client(key)),
            aclosing(self._replicas.stream("chat_stream", request)) as pieces,
        ):
            async for piece in pieces:
                bodies = (
                    chunk_bodies(head, "", [c.finish_reason for c in piece.choices])
                    if isinstance(piece, ChatResult)
                    else chunk_bodies(head, piece)
                )
                for body in bodies:
                    yield f"data: {json.dumps(body)}\n\n".encode()
        yield b"data: [DONE]\n\n"

    async def solve_events(self, request: SolveRequest, key: Key | None) -> AsyncGenerator[bytes]:
        """Events of `EventStream`; raises ApiError."""
        names = {TriedChunk: "chunk", KeptChunk: "kept", SolveResponse: "done"}
        async with aclosing(self._search(request, key)) as events:
            async for item in events:
                yield event(names[type(item)], item.model_dump_json())

    async def _search(
        self, request: SolveRequest, key: Key | None
    ) -> AsyncGenerator[TriedChunk | KeptChunk | SolveResponse]:
        if self._policies is None:
            raise ApiError(
                "not_found", "this server has no policy to solve with: start it with serve.policy="
            )
        self.count(key)
        judge = (await self.card()).model
        async with (
            self.queue.place(*_client(key)),
            aclosing(self._policies.stream("solve_stream", request)) as events,
        ):
            async for item in events:
                if isinstance(item, SolveResponse):
                    self.metrics.solved(item)
                    item = item.model_copy(update={"judge": judge})
                yield item

    # --- the judge itself -------------------------------------------------------------------------

    async def card(self) -> JudgeCard:
        """Of a judge that has answered within the last second; raises ApiError."""
        async with self._probing:
            if self._probed is None or time.monotonic() - self._probed[0] > CARD_S:
                try:
                    async with asyncio.timeout(PROBE_S):
                        found: JudgeCard | ApiError = await self._replicas.call("probe")
                except TimeoutError:
                    found = ApiError(
                        "unavailable", f"no judge answered within {PROBE_S:g} s", None, PROBE_S
                    )
                except ApiError as error:
                    found = error
                self._probed = time.monotonic(), found
            found = self._probed[1]
        if isinstance(found, ApiError):
            raise found
        return found

    async def drain(self, patience_s: float) -> int:
        """Take nothing new and answer what was taken; what is not done by then is answered with
        503, and counted."""
        self.queue.close()
        return await self.owed.finish(patience_s)

    # --- limits -----------------------------------------------------------------------------------

    def seconds_of(self, request: Solution | SolveRequest) -> float:
        """The request's own deadline, where the server's is not nearer."""
        return min(request.deadline_s or self.deadline_s, self.deadline_s)

    def count(self, key: Key | None, solutions: int = 1) -> None:
        """Raises ApiError where the key's rate or the queue has no room for so many."""
        name, _ = _client(key)
        if solutions > 1:
            self.queue.refuse_unless_room(name, solutions)
        if key is None or key.per_minute is None:
            return
        seconds = self._rate.take(name, key.per_minute, solutions)
        if math.isinf(seconds):
            raise ApiError(
                "invalid_request",
                f"has {solutions} solutions, and the key {name} may ask for {key.per_minute} a "
                "minute: split the batch",
            )
        if seconds > 0:
            raise ApiError(
                "rate_limited",
                f"the key {name} may ask for {key.per_minute} solutions a minute; try again in "
                f"{seconds:.0f} s",
                retry_after_s=seconds,
            )

    async def _judge(
        self, request: Solution, key: Key | None, position: int | None
    ) -> JudgeResponse:
        seconds = self.seconds_of(request)
        try:
            response: JudgeResponse = await self._within(seconds, "judge", request, key)
        except ApiError as error:
            if position is None:
                raise
            failure = error.failure
            raise ApiError(
                failure.type,
                f"solution {position}: {failure.message}",
                failure.param,
                failure.retry_after_s,
            ) from None
        self.metrics.judged(response)
        return response

    async def _within(
        self, seconds: float, method: str, body: Solution | ChatRequest, key: Key | None
    ) -> Any:
        async with self.owed.within(seconds), self.queue.place(*_client(key)):
            return await self._replicas.call(method, body)


def _client(key: Key | None) -> tuple[str, int | None]:
    return (ANONYMOUS, None) if key is None else (key.name, key.concurrency)


def _scores(response: JudgeResponse, index: int) -> list[float]:
    scores = step_scores(response)
    if scores is None:
        step = next(step.index for step in response.steps if step.score is None)
        raise ApiError(
            "no_verdict",
            f"solution {index}: the judge named no verdict on step {step} in {TRIES} tries, and no "
            "number can stand for that; leave the solution out",
        )
    return scores
