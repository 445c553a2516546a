"""What Serve's proxies answer where the ingress was lost before it had begun to answer.

Proxies are Serve's own: of a request whose ingress ends with its process or its machine they say
nothing, and the server around them makes that a bare 500. Here it is what it is, a passing failure
in the one shape, after which a judgement may be asked for again. Proxies call `middlewares` where
the environment that they start with has `ENVIRONMENT`.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import Failure, error_response

ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy_errors:middlewares",
    # Nothing here blocks its event loop, so that one a process is enough. Between three of them a
    # request changes threads six times, which costs 8 % of the solutions/s on two cores.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""Of every process of Serve."""
RETRY_AFTER_S = 5.0
"""Serve makes another ingress in about that time."""


def middlewares() -> list[Middleware]:
    """For each proxy of a cluster, whatever applications its Serve runs."""
    return [Middleware(AnswerLostRequests)]


class AnswerLostRequests:
    """503 with Retry-After for requests that end without a word of an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        await self._app(scope, receive, noting)
        if not begun:
            message = "what was to answer this was lost; send it again"
            # By that time Serve has noted an id among the headers of a request that had none.
            named = {name.lower(): value for name, value in scope["headers"]}.get(b"x-request-id")
            request_id = named.decode("latin-1") if named else None
            failure = Failure("unavailable", message, retry_after_s=RETRY_AFTER_S)
            response = error_response(failure, request_id)
            if request_id:
                response.headers["X-Request-ID"] = request_id
            await response(scope, receive, send)
