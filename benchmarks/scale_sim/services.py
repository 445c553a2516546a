"""How long each part takes for what it does, in CPU seconds unless said otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self


@dataclass(frozen=True)
class EngineRate:
    """One engine that decodes ``c`` sequences takes ``step_s + c * sequence_s`` for a token of
    each."""

    slots: int
    """Sequences decoded at once."""
    step_s: float
    sequence_s: float

    @classmethod
    def of(cls, tokens_per_s: float, slots: int, step_s: float) -> Self:
        """``tokens_per_s``: of a full engine."""
        return cls(slots, step_s, 1 / tokens_per_s - step_s / slots)

    @property
    def full(self) -> float:
        """Tokens/s with every slot taken."""
        return self.slots / (self.step_s + self.slots * self.sequence_s)


A100_7B = EngineRate.of(2_500, 512, 15.2e9 / 2.0e12)
"""The rate that the paper's fourteen days come to (docs/cost.md); a step reads 15.2 GB of weights
at 2.0 TB/s, whatever else it does."""


@dataclass(frozen=True)
class Services:
    """Of everything but the engines."""

    submit_s: float
    """Of a labeler, to send a request, besides the choice of an engine."""
    answer_s: float
    """Of a labeler, for an answer and what follows from it, with short samples."""
    sample_s: float
    """Of a labeler, for a sample as long as a solution beyond a short one."""
    route_s: Mapping[int, float]
    """Of a labeler, for the choice of an engine and the news of its end, by number of engines."""
    news_s: Mapping[int, float]
    """Of a labeler, a second: news of the engines and looks at what waits, by engines."""
    check_s: float
    """Of a labeler's checker, for an answer that it has not seen with its problem."""
    new_answers: float
    """Share of the samples with such an answer."""
    registry_s: Mapping[int, float]
    """Of the registry, a second, by engines, with `labelers` clients."""
    tick_s: Mapping[int, float]
    """Of the driver, a second: readings, admission, counters, metrics, the supervisor's look; by
    engines."""
    call_s: float
    """Of a caller, for one call of an actor."""
    called_s: float
    """Of an actor, for one call."""
    unit_s: float
    """Of the driver, for a unit."""
    write_s: float
    """Of a labeler, to write a unit's rows."""
    daemons_s: float
    """Of Ray's daemons on the head, for a request."""
    gcs_node_s: float
    """Of Ray's GCS, a second and node."""
    sample_bytes: float
    """Of a sample on the network."""
    put_s: float = 0.05
    """Wall time of a request to the storage: of S3 in the same region, stated and not measured."""
    puts: int = 5
    """Requests of a unit (docs/storage.md)."""
    hop_s: float = 0.001
    """Wall time of a message between two nodes: stated and not measured."""
    labelers: int = 16
    head_cpus: int = 16
    """Cores of the head's machine (m6i.4xlarge in cluster/aws)."""
    head_gbits: float = 12.5
    """Its network, Gbit/s."""
    node_engines: int = 8
    puts_per_s: float = 3500.0
    """That S3 promises of one prefix."""

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> Self:
        """From JSON, whose keys are all strings."""
        fields = dict(known)
        for name, value in known.items():
            if isinstance(value, Mapping):
                fields[name] = {int(engines): seconds for engines, seconds in value.items()}
        return cls(**fields)


def at(table: Mapping[int, float], engines: int) -> float:
    """Between two measured numbers of engines in proportion; beyond them as between the last."""
    known = sorted(table)
    if engines in table:
        return table[engines]
    if len(known) == 1 or engines < known[0]:
        return table[known[0]]
    low, high = next(((a, b) for a, b in pairwise(known) if engines <= b), known[-2:])
    return table[low] + (table[high] - table[low]) * (engines - low) / (high - low)
