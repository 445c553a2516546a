"""What every request passes before its route: a request id, a key, a look at the body's size.

Plain ASGI, so that a client that leaves cancels its request at once, and nothing is read of a body
that is refused.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from serve.access.keys import KeyRing, secret_of
from serve.access.owed import OwedAnswers
from serve.errors import ApiError, Failure, error_response
from stepwiser.errors import UserError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
OPEN_FOLDER = "/page/"
"""Without a key: the page, which holds nothing, and what load balancers ask."""
ANONYMOUS = "anonymous"
"""Name of all clients of a server that wants no keys."""


UNANSWERED = 499
"""Status, in the figures, of a request whose client left before it was answered."""

_log = logging.getLogger("ray.serve")


class Observer(Protocol):
    """Told of every answered request."""

    def answered(self, route: str, status: int, seconds: float) -> None: ...


class Gate:
    """ASGI middleware; leaves the client's `Key` or None in ``scope["state"]["key"]``."""

    def __init__(
        self,
        app: App,
        *,
        keys: KeyRing,
        owed: OwedAnswers,
        max_body_bytes: int,
        observer: Observer,
        new_id: Callable[[], str],
    ) -> None:
        """``new_id``: of the request that is being answered, as whoever is in front tells it."""
        self._app = app
        self._keys = keys
        self._owed = owed
        self._max_body_bytes = max_body_bytes
        self._observer = observer
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._owed.request():
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), UNANSWERED
        request_id = self._new_id()
        scope.setdefault("state", {})["request_id"] = request_id

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, self._limited(receive), watched)
        except ApiError as error:
            await error_response(error.failure, request_id)(scope, receive, watched)
        except Exception as error:  # a fault of this program: told as one, and logged
            # Without its message, in which a part of the request may stand.
            frames = "".join(traceback.format_tb(error.__traceback__))
            _log.error("%s in request %s\n%s", type(error).__name__, request_id, frames)
            if status != UNANSWERED:
                raise
            failure = Failure("internal", f"{type(error).__name__}: the server's log has more")
            await error_response(failure, request_id)(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._observer.answered(route, status, time.monotonic() - began)

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        scope["state"]["key"] = None
        path = scope["path"]
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
        if self._keys.required and not is_open:
            try:
                key = self._keys.find(secret_of(headers.get("authorization", "")))
            except UserError as error:
                raise ApiError("unavailable", str(error), retry_after_s=10) from error
            if key is None:
                raise ApiError(
                    "unauthorized",
                    "missing, wrong or revoked key: send the header `Authorization: Bearer KEY`",
                )
            scope["state"]["key"] = key
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise ApiError("malformed_request", f"content-length: is {length[:40]!r}; no number")
        if int(length) > self._max_body_bytes:
            raise ApiError("too_large", self._too_large())

    def _limited(self, receive: Receive) -> Receive:
        """Stops a body that told no length, or a wrong one."""
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._max_body_bytes:
                    # The one kind of exception that the framework hands on while it reads a body.
                    raise HTTPException(413, self._too_large())
            return message

        return limited

    def _too_large(self) -> str:
        return (
            f"body: is larger than {self._max_body_bytes} bytes; split the request, or serve with "
            "a larger serve.max_body_kb"
        )
