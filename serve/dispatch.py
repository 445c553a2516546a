"""From the ingress to a replica: sent again where one is lost, given up where nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import NodeDiedError, RayActorError, TaskCancelledError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from serve.errors import Failure, raise_failure

LOST = (
    RayActorError,  # also of a replica that takes a call between the end of its drain and its own
    WorkerCrashedError,
    NodeDiedError,
    ReplicaUnavailableError,
    DeploymentUnavailableError,
    TaskCancelledError,  # by Serve; what is cancelled here never comes so far
)
"""What a call raises whose replica is gone. Judging changes nothing, so it is sent again."""
MOST_CALLS = 5
FIRST_PAUSE_S = 0.1
"""Before the second attempt, and twice as much before each other one."""
RETRY_AFTER_S = 5.0


class Replicas:
    """Those behind one deployment handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def call(self, method: str, *arguments: Any) -> Any:
        """What a replica answers; cancelling the call aborts the work in its engine.

        Raises ApiError: the replica's own, or `unavailable` (503) where every attempt was lost.
        """
        failure = _nobody("")
        for attempt in range(MOST_CALLS):
            if attempt:
                await asyncio.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
            response = self._handle.options(method_name=method).remote(*arguments)
            try:
                result = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except LOST as error:
                failure = _nobody(type(error).__name__)
                continue
            if not isinstance(result, Failure) or result.type != "engine_failed":
                return raise_failure(result)
            failure = result  # another replica's engine may be well, and Serve replaces this one
        return raise_failure(failure)

    async def stream(self, method: str, *arguments: Any) -> AsyncGenerator[Any]:
        """What a replica yields; closing the iterator aborts the work in its engine.

        Sent again as `call` as long as nothing has come. Raises ApiError as that.
        """
        failure = _nobody("")
        for attempt in range(MOST_CALLS):
            if attempt:
                await asyncio.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
            options = self._handle.options(method_name=method, stream=True)
            response: Any = options.remote(*arguments)
            begun = finished = False
            try:
                async for result in response:
                    if isinstance(result, Failure) and result.type == "engine_failed" and not begun:
                        failure = result
                        break
                    begun = True
                    yield raise_failure(result)
                else:
                    finished = True
                    return
            except LOST as error:
                finished = True
                failure = _nobody(type(error).__name__)
                if begun:
                    break
            finally:
                if not finished:
                    response.cancel()
        raise_failure(failure)


def _nobody(why: str) -> Failure:
    reason = f" ({why})" if why else ""
    return Failure(
        "unavailable",
        f"nobody answered: the replica was lost{reason}; send the request again",
        retry_after_s=RETRY_AFTER_S,
    )
