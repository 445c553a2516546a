"""One call of one engine actor, and what it says when it ends badly."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.engine.engine import EngineFailure
from actors.pool.quarantine import UNLIMITED, RequestHistory
from actors.pool.registry import StaleWeights
from actors.weight_sync.transfer import TransferFailed
from stepwiser.errors import UserError


async def call_engine(
    actor: Any, method: str, request: tuple[Any, ...], history: RequestHistory
) -> Any:
    """One engine's answer to a request; if it dies with the request in it, ``history`` knows.

    Most requests wait for one answer. One that is under suspicion is told when it has been let
    into the engine: an engine that dies while it waits there outside is none of its doing.
    """
    limit = history.max_concurrent
    if limit == UNLIMITED:
        try:
            return await answer(getattr(actor, method).remote(*request))
        except (EngineFailure, RayActorError):
            history.lost()
            raise
    steps = getattr(actor, f"{method}_isolated").remote(limit, *request)
    try:
        await answer(await anext(steps))
        try:
            return await answer(await anext(steps))
        except (EngineFailure, RayActorError):
            history.lost()
            raise
    except asyncio.CancelledError:
        ray.cancel(steps)
        raise


def reason(failure: BaseException) -> str:
    """What vLLM said, if it said anything; Ray's words have ids of actors in them."""
    return f": {failure}" if isinstance(failure, EngineFailure) else ""


async def answer(ref: Any) -> Any:
    """Await a call; the engine's own exceptions come back as they were raised there."""
    try:
        return await ref
    except asyncio.CancelledError:
        ray.cancel(ref)  # or the engine would go on for nobody
        raise
    except RayTaskError as error:
        if isinstance(error.cause, UserError | EngineFailure | StaleWeights | TransferFailed):
            raise error.cause from None
        raise
