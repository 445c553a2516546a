"""Do several judgements of one step agree, and is their majority right when they do?

Vote codes are those of `records.Judgement`: 1 Positive, 0 Negative, −1 no verdict. A missing
verdict is an answer of its own here: a judge that is silent half of the time does not agree with
itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stepwiser.data.records import Judgement, StepItem, group_by

CODES = (1, 0, -1)


@dataclass(frozen=True)
class Agreement:
    """How far the votes of a judge agree over all steps; errors take solutions as the units."""

    steps: int
    votes: int
    """Of each step."""
    pairwise: float
    """Mean share of pairs of votes on one step that are the same, 0..1."""
    pairwise_standard_error: float | None
    kappa: float | None
    """Fleiss' kappa: agreement beyond chance, 1 at most, 0 where votes are as good as drawn from
    the judge's overall shares; ``None`` where it gave the same answer everywhere, for then chance
    alone agrees."""
    kappa_standard_error: float | None
    """By leaving out one solution at a time; ``None`` where kappa is, or with one solution."""
    unanimous: float
    """Share of steps with the same answer from all votes."""


@dataclass(frozen=True)
class MarginAccuracy:
    """The majority's accuracy on steps that were decided by so many votes."""

    margin: int
    """Positive votes less negative ones, without the sign."""
    count: int
    accuracy: float
    standard_error: float
    missing: int
    """Steps without any verdict; they count as misses."""


def agreement(items: Sequence[StepItem], judgements: Sequence[Judgement]) -> dict[str, Any] | None:
    """`Agreement` over all steps, and `margins`: accuracy up to the first wrong step, where the
    truth is known. None for a judge of one vote."""
    by_item = group_by(judgements, "item_id")
    found = vote_agreement([[row.votes for row in by_item[item.id]] for item in items])
    if found is None:
        return None
    known = [
        (row.votes, row.step_index != item.label)
        for item in items
        for row in by_item[item.id]
        if item.label == -1 or row.step_index <= item.label
    ]
    margins = accuracy_by_margin([votes for votes, _ in known], [right for _, right in known])
    return {**asdict(found), "margins": [asdict(row) for row in margins]}


def vote_agreement(solutions: Sequence[Sequence[Sequence[int]]]) -> Agreement | None:
    """Agreement of the votes in ``solutions[i][step][vote]``; None where nothing can be compared.

    Raises:
        ValueError: steps with different numbers of votes, or a code that is none.
    """
    sizes = {len(votes) for steps in solutions for votes in steps}
    if len(sizes) > 1:
        raise ValueError(f"every step must have as many votes as the others, got {sorted(sizes)}")
    if not sizes or (count := sizes.pop()) < 2:
        return None
    parts = [_sums(steps, count) for steps in solutions if steps]
    total = _add(parts)
    kappa = _kappa(total, count)
    left_out = [_kappa(_add([total, part], -1), count) for part in parts]
    known = [value for value in left_out if value is not None]
    error = None
    if kappa is not None and len(known) == len(parts) > 1:
        mean = math.fsum(known) / len(known)
        spread = math.fsum((value - mean) ** 2 for value in known)
        error = math.sqrt((len(known) - 1) / len(known) * spread)
    pairwise = total.agreeing / total.steps
    # A ratio of two sums over solutions: its error by the delta method.
    residuals = math.fsum((part.agreeing - pairwise * part.steps) ** 2 for part in parts)
    spread = len(parts) / max(1, len(parts) - 1) * residuals
    return Agreement(
        steps=total.steps,
        votes=count,
        pairwise=pairwise,
        pairwise_standard_error=math.sqrt(spread) / total.steps if len(parts) > 1 else None,
        kappa=kappa,
        kappa_standard_error=error,
        unanimous=total.unanimous / total.steps,
    )


def accuracy_by_margin(
    votes: Sequence[Sequence[int]], labels: Sequence[bool]
) -> list[MarginAccuracy]:
    """Accuracy of the majority (a tie is Negative, as in `judging.majority`) by margin, rising.

    Args:
        votes: of each step, as codes.
        labels: whether the step is right.

    Raises:
        ValueError: lengths that differ.
    """
    if len(votes) != len(labels):
        raise ValueError(f"one label a step: got {len(votes)} steps and {len(labels)} labels")
    groups: dict[int, list[tuple[bool, bool]]] = {}
    for codes, label in zip(votes, labels, strict=True):
        margin = codes.count(1) - codes.count(0)
        silent = codes.count(-1) == len(codes)
        hit = not silent and (margin > 0) == label
        groups.setdefault(abs(margin), []).append((hit, silent))
    rows = []
    for margin, members in sorted(groups.items()):
        share = sum(hit for hit, _ in members) / len(members)
        error = math.sqrt(share * (1 - share) / len(members))
        missing = sum(silent for _, silent in members)
        rows.append(MarginAccuracy(margin, len(members), share, error, missing))
    return rows


@dataclass(frozen=True)
class _Sums:
    steps: int
    agreeing: float
    """Sum over steps of the share of pairs that agree."""
    unanimous: int
    codes: tuple[int, ...]
    """How often each of CODES was given."""


def _sums(steps: Sequence[Sequence[int]], count: int) -> _Sums:
    agreeing = 0.0
    unanimous = 0
    totals = [0] * len(CODES)
    for votes in steps:
        counts = [votes.count(code) for code in CODES]
        if sum(counts) != count:
            raise ValueError(f"a vote must be one of {CODES}, got {list(votes)}")
        agreeing += sum(n * (n - 1) for n in counts) / (count * (count - 1))
        unanimous += max(counts) == count
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
    return _Sums(len(steps), agreeing, unanimous, tuple(totals))


def _add(parts: Sequence[_Sums], sign: int = 1) -> _Sums:
    """The first part and the others, added or (``sign`` −1) taken away."""
    first, *others = parts
    return _Sums(
        first.steps + sign * sum(part.steps for part in others),
        first.agreeing + sign * math.fsum(part.agreeing for part in others),
        first.unanimous + sign * sum(part.unanimous for part in others),
        tuple(n + sign * sum(part.codes[i] for part in others) for i, n in enumerate(first.codes)),
    )


def _kappa(sums: _Sums, count: int) -> float | None:
    if not sums.steps:
        return None
    shares = [n / (sums.steps * count) for n in sums.codes]
    by_chance = math.fsum(share**2 for share in shares)
    if max(sums.codes) == sums.steps * count:
        return None
    return (sums.agreeing / sums.steps - by_chance) / (1 - by_chance)
