"""Machines that a run may be planned for, none of which has to be there."""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU. Sizes are bytes."""

    name: str
    memory: float
    """What CUDA says that it has."""
    host: float
    """Host memory that a machine has for each, at least."""


CARDS = {
    "A100-40GB": Card("A100-40GB", 39.4 * GIB, 85 * GIB),
    "A100": Card("A100", 79.1 * GIB, 144 * GIB),
    "H100": Card("H100", 79.1 * GIB, 234 * GIB),
    "H200": Card("H200", 139.8 * GIB, 234 * GIB),
}
"""By the names that costs go by; without a size the A100 of 80 GB is meant. Host memory: the
leanest machines of the files in `cluster/`, and Google's a3 machines."""
CPUS = 12.0
"""Of a machine, for each card."""
MOST = 8
"""Cards of one machine."""


@dataclass(frozen=True)
class Machines:
    """Equal machines."""

    nodes: int
    cards: int
    """Of each."""
    card: Card

    @property
    def gpus(self) -> int:
        return self.nodes * self.cards

    def __str__(self) -> str:
        one = f"{self.cards}x{self.card.name}"
        return one if self.nodes == 1 else f"{self.nodes}x{one}"


def parse_machines(text: str) -> Machines:
    """`A100`, `8xA100-40GB`, `4x8xA100` (machines, cards of each), or `32xA100`.

    Raises:
        ValueError: anything else, a card that is not known, or more cards than a machine has.
    """
    match = re.fullmatch(
        r"(?:(\d+)\s*[xX×])?\s*(?:(\d+)\s*[xX×])?\s*([A-Za-z][\w-]*)", text.strip()
    )
    name = match[3].upper().removesuffix("-80GB") if match else ""
    if name not in CARDS:
        raise ValueError(
            f"gpus {text!r} are not of the form 8xA100 or 4x8xA100-40GB with one of "
            + ", ".join(CARDS)
        )
    assert match is not None
    first, second = (int(one) if one else None for one in match.group(1, 2))
    nodes, cards = (first or 1, second) if second else (1, first or 1)
    if not second and cards > MOST and cards % MOST == 0:
        nodes, cards = cards // MOST, MOST
    if first == 0 or second == 0 or cards > MOST:
        raise ValueError(f"gpus {text!r}: a machine has 1 to {MOST} cards")
    return Machines(nodes, cards, CARDS[name])
