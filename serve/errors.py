"""One shape for everything that goes wrong, whoever finds it: gate, routes, queue or engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

STATUS = {
    "invalid_request": 422,
    "malformed_request": 400,
    "no_verdict": 422,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_large": 413,
    "rate_limited": 429,
    "overloaded": 429,
    "internal": 500,
    "engine_failed": 503,
    "unavailable": 503,
    "draining": 503,
    "deadline_exceeded": 504,
}
"""HTTP status by type of error."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: str = Field(description=f"One of {', '.join(STATUS)}.")
    message: str = Field(description="The thing, its value, and what to do about it.")
    param: str | None = Field(None, description="Field of the request that is at fault.")
    request_id: str | None = Field(None, description="As in the header x-request-id and the logs.")


class ErrorBody(BaseModel):
    """Body of every answer that is no success, and data of the event `error`."""

    error: ErrorDetail


@dataclass(frozen=True)
class Failure:
    """An error as a value.

    What a replica raises, Serve logs with its message, in which a request's text may stand; what it
    returns it does not.
    """

    type: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


class ApiError(Exception):
    """Ends a request with an error of the one shape."""

    def __init__(
        self,
        kind: str,
        message: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message, param, retry_after_s)

    @property
    def status(self) -> int:
        return STATUS[self.failure.type]


def raise_failure(result: Any) -> Any:
    """What a replica returned; raises ApiError where that is a failure."""
    if isinstance(result, Failure):
        raise ApiError(result.type, result.message, result.param, result.retry_after_s)
    return result


def error_body(failure: Failure, request_id: str | None) -> ErrorBody:
    """A failure as it is sent."""
    detail = ErrorDetail(
        type=failure.type,
        message=_encodable(failure.message),
        param=None if failure.param is None else _encodable(failure.param),
        request_id=request_id,
    )
    return ErrorBody(error=detail)


def _encodable(text: str) -> str:
    """Half of a character, which JSON can write and an answer cannot, as it is written."""
    return text.encode("utf-8", "backslashreplace").decode()


def error_response(failure: Failure, request_id: str | None) -> JSONResponse:
    """A failure as an HTTP answer, with the headers that belong to its status."""
    headers = {}
    if failure.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(failure.retry_after_s + 0.5)))
    if failure.type == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(failure, request_id).model_dump(exclude_none=True)
    return JSONResponse(body, status_code=STATUS[failure.type], headers=headers)


def failure_of_status(status: int, detail: str) -> Failure:
    """What the web framework refuses, in this shape."""
    named = {
        404: "not_found",
        405: "method_not_allowed",
        413: "too_large",
        400: "malformed_request",
    }
    return Failure(named.get(status, "internal" if status >= 500 else "invalid_request"), detail)
