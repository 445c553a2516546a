"""What actors answer a learner, which waits for it, but not for ever."""

from __future__ import annotations

from typing import Any

import ray


def answer(call: ray.ObjectRef, timeout_s: float, late: str) -> Any:
    """The answer to a call, or the object of a reference.

    Raises TimeoutError where there is none in time, with the words ``late``: who is late, and what
    to do about it.
    """
    try:
        return ray.get(call, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise TimeoutError(late) from error
