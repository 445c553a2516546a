"""Verifiers as a person might bring them, for `test_own_verifier`."""

from __future__ import annotations

import contextlib
import time


def last_character(answer: str, reference: str, problem: str) -> bool | None:
    """Right where both end alike; cannot say about a problem it does not know."""
    if "unknown" in problem:
        return None
    return answer[-1:] == reference[-1:]


def trouble(answer: str, reference: str, problem: str) -> object:
    """Does what the answer says."""
    print("a verifier may print")
    if answer == "raise":
        raise RuntimeError("no database")
    if answer == "exit":
        raise SystemExit(3)
    if answer == "die":
        import os

        os._exit(1)
    if answer == "sleep":
        time.sleep(60)
    if answer == "swallow":
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(60)
    return {"string": "yes", "number": 1, "none": None}.get(answer, answer == reference)


NO_FUNCTION = 3
