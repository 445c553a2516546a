"""Server-sent events whose errors before the first event are ordinary answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from serve.access.owed import OwedAnswers
from serve.errors import ApiError, error_body, error_response


def event(name: str, data: str) -> bytes:
    """One event; ``data`` is JSON, which has no line breaks."""
    return f"event: {name}\ndata: {data}\n\n".encode()


class EventStream(Response):
    """Sends what an iterator yields, and closes it when the client leaves or the time is up."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        owed: OwedAnswers,
        deadline_s: float,
        named: bool = True,
    ) -> None:
        """``named``: give an error the event name `error`; clients of OpenAI's API know none."""
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._events: Any = events
        self._owed = owed
        self._deadline_s = deadline_s
        self._named = named
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        try:
            async with self._owed.within(self._deadline_s), aclosing(self._events) as events:
                async for data in events:
                    if not begun:
                        begun = True
                        await self._begin(send)
                    await send(_body(data, more=True))
        except ApiError as error:
            request_id = scope["state"]["request_id"]
            if not begun:
                await error_response(error.failure, request_id)(scope, receive, send)
                return
            data = error_body(error.failure, request_id).model_dump_json(exclude_none=True)
            await send(
                _body(
                    event("error", data) if self._named else f"data: {data}\n\n".encode(), more=True
                )
            )
        await send(_body(b"", more=False))

    async def _begin(self, send: Send) -> None:
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": 200, "headers": headers})


def _body(data: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}
