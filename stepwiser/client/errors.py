"""What a request ends with that got no answer: the server's own words, or why there are none."""

from __future__ import annotations

from functools import partial

import httpx
from pydantic import ValidationError

from stepwiser.client.types import ErrorBody, ErrorDetail
from stepwiser.errors import UserError

PASSING_STATUS = frozenset({429, 502, 503})
"""Too many at once, or nobody there now: the same request may be answered a little later."""
PASSING_TYPES = frozenset(
    {"rate_limited", "overloaded", "engine_failed", "unavailable", "draining", "connection_failed"}
)


class JudgeError(UserError):
    """A request without an answer; its message names the field, the value and the fix.

    `type` is the server's (docs/serving.md lists them), or `connection_failed` where it could not
    be reached or hung up, and `deadline_exceeded` where the client's own time was up.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        status: int | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        words = [str(status)] if status is not None else []
        words += [kind] + ([f"request {request_id}"] if request_id else [])
        super().__init__(f"{message} ({', '.join(words)})")
        self.type = kind
        self.message = message
        self.status = status
        self.param = param
        """Field of the request that is at fault."""
        self.request_id = request_id
        """As in the server's logs."""
        self.retry_after_s = retry_after_s

    @property
    def is_passing(self) -> bool:
        """Whether the same request may be answered later: never where the caller is at fault."""
        if self.status is not None:
            return self.status in PASSING_STATUS
        return self.type in PASSING_TYPES

    def __reduce__(self) -> tuple[object, ...]:
        # An exception is made again from `args`, its one message; this is made of more.
        named = {name: getattr(self, name) for name in _NAMED}
        return partial(JudgeError, **named), (self.type, self.message)


_NAMED = ("status", "param", "request_id", "retry_after_s")


def error_of_reply(reply: httpx.Response) -> JudgeError:
    """Of an answer that is no success and has been read, whoever in between wrote it."""
    retry_after = reply.headers.get("retry-after", "")
    seconds = float(retry_after) if retry_after.isdecimal() else None
    try:
        detail = ErrorBody.model_validate_json(reply.content).error
    except ValidationError:
        detail = ErrorDetail(
            type="no_judge",
            message=f"{reply.url} answered with {reply.status_code} {reply.reason_phrase} and no "
            "error of a judge service; is this its address?",
        )
    return error_of_detail(detail, reply.status_code, seconds)


def error_of_detail(
    detail: ErrorDetail, status: int | None = None, retry_after_s: float | None = None
) -> JudgeError:
    """Of the server's error, alone or in an item of a batch."""
    return JudgeError(
        detail.type,
        detail.message,
        status=status,
        param=detail.param,
        request_id=detail.request_id,
        retry_after_s=retry_after_s,
    )


def connection_failed(address: str, why: str) -> JudgeError:
    """Of a server that cannot be reached or hung up."""
    return JudgeError(
        "connection_failed",
        f"{address}: {why}; look whether the judge runs there (`curl {address}/health`)",
    )


def deadline_exceeded(address: str, seconds: float, last: JudgeError | None) -> JudgeError:
    """Of a request for which the client's time was up; ``last``: what it had met before."""
    why = f" (before: {last.message})" if last is not None else ""
    return JudgeError(
        "deadline_exceeded",
        f"{address}: no answer within deadline_s={seconds:g}{why}; send fewer steps at a time, or "
        "allow more",
        request_id=last.request_id if last is not None else None,
    )


def unreadable(address: str, error: ValidationError) -> JudgeError:
    """Of a success that is none of this service's."""
    where = ".".join(map(str, error.errors()[0]["loc"]))
    return JudgeError(
        "no_judge",
        f"{address}: its answer is not a judge's ({where}: {error.errors()[0]['msg']}); give the "
        "address of `stepwiser serve`, of this version",
    )
