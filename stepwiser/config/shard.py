"""One of several equal parts of the same work."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`: it owns every unit whose position in the plan is index mod count."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n`, counted from 0.

        Raises:
            ValueError: anything but two whole numbers with 0 <= i < n.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match:
            raise ValueError(f"shard {text!r} is not of the form i/n, for example 0/4")
        index, count = int(match[1]), int(match[2])
        if index >= count:
            raise ValueError(
                f"shard {text!r} does not exist: the {count} shards are counted from 0"
                + (f" to {count - 1}" if count else ", and there is at least one")
            )
        return cls(index, count)

    def owns(self, position: int) -> bool:
        """Whether the unit at this position of the plan is this shard's."""
        return position % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
