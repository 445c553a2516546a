"""Verifiers that a person brings: a function by its dotted path, or a service by its address.

A function is called as `function(answer, reference, problem)` and says True, False, or None where
it cannot say. A service gets a POST of `{"items": [{"answer", "reference", "problem"}, …]}` and
answers `{"verdicts": [true, false, null, …]}`, one for each. Both run in a `bounded` process.
"""

from __future__ import annotations

import json
import pkgutil
import urllib.request
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from stepwiser.data.answers.bounded import Outcome

BATCH = 64
"""Answers of one request to a service."""

LONGEST_REPLY = 1 << 20
"""Bytes of a service's reply that are read."""


@cache
def load_function(path: str) -> Callable[[str, str, str], object]:
    """The function at `module:function`; raises what its import raises, or TypeError."""
    found: Any = pkgutil.resolve_name(path)
    if not callable(found):
        raise TypeError(f"{path} is a {type(found).__name__}, no function")
    return found


def ask_function(path: str, answers: Sequence[str], reference: str, problem: str) -> list[Outcome]:
    """What the function says of each answer."""
    function = load_function(path)
    return [_outcome(function(answer, reference, problem)) for answer in answers]


def ask_service(
    url: str, seconds: float, answers: Sequence[str], reference: str, problem: str
) -> list[Outcome]:
    """What the service says of all answers at once.

    Raises what `urllib` raises, and ValueError for a reply that is no list of as many verdicts.
    """
    items = [{"answer": a, "reference": reference, "problem": problem} for a in answers]
    request = urllib.request.Request(
        url, json.dumps({"items": items}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=seconds) as reply:
        body = json.loads(reply.read(LONGEST_REPLY))
    verdicts = body.get("verdicts") if isinstance(body, dict) else None
    if not isinstance(verdicts, list) or len(verdicts) != len(items):
        raise ValueError(f"the reply has no list verdicts of {len(items)}")
    return [_outcome(verdict) for verdict in verdicts]


def _outcome(said: object) -> Outcome:
    if said is None:
        return Outcome(None, "it cannot say")
    if type(said).__name__ in ("bool", "bool_"):  # NumPy's too
        return Outcome(bool(said))
    return Outcome(None, f"it said {type(said).__name__}, not True, False or None")
