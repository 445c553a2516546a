"""JSON bodies that are almost right: what a client sends by mistake or to do harm."""

from __future__ import annotations

import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, float("nan"), float("inf"), 2**70, "", " ", "\x00", "\ud800",
    "%s{0}{x}", "<chunk>", "</chunk>a", "<|im_end|>", "\u202e", "x" * 3000, [], [[]], ["", ""],
    {}, {"": {}}, [[[[[[[[]]]]]]]], "\\boxed{Positive}", "\n\n\n", "1", ["1"] * 600,
)  # fmt: skip
"""Values in the place of any other."""


def mutated(example: Any, rng: random.Random) -> bytes:
    """A body like ``example`` with one to three things wrong."""
    value = json.loads(json.dumps(example))
    for _ in range(rng.randint(1, 3)):
        value = _changed(value, rng)
    body = json.dumps(value).encode()
    kind = rng.random()
    if kind < 0.05:
        return body[: rng.randrange(len(body) + 1)]
    if kind < 0.1:
        at = rng.randrange(len(body) + 1)
        return body[:at] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 8))) + body[at:]
    if kind < 0.12:
        return b"[" * 5000
    return body


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.15:
            return {k: v for k, v in value.items() if k != name}
        if kind < 0.3:
            return value | {rng.choice([name + "s", "", "stream", "votes", "n"]): rng.choice(ODD)}
        return value | {name: _changed(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = rng.randrange(len(value))
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD)
