"""What a critic says of labels: a second opinion that owes nothing to rollouts.

Rollouts call a chunk good when completions after it succeed, a critic when it reads as right; where
both say the same a label hangs on neither alone (`label.critic`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stepwiser.evaluation.bootstrap import bootstrap


@dataclass(frozen=True)
class CriticAgreement:
    """How far a critic's verdicts are the labels; the interval takes problems as the units."""

    critic: str
    chunks: int
    """That it was asked about."""
    verdicts: int
    """On which it gave one."""
    agreement: float | None
    """Share of its verdicts that are the label, 0..1; None without any."""
    low: float | None
    high: float | None
    kappa: float | None
    """Cohen's; None where the labels or the verdicts are all of one class."""
    passed_positive: float | None
    """Share of Positive labels among its verdicts that it calls Positive; None without any."""
    found_negative: float | None
    """Share of Negative labels among its verdicts that it calls Negative; None without any."""


def critic_agreement(
    critic: str,
    labels: Sequence[bool],
    verdicts: Sequence[bool | None],
    problems: Sequence[str],
) -> CriticAgreement:
    """Labels [chunks] against verdicts [chunks], None where there is none; and the problem of
    each chunk."""
    rows = [
        (label, verdict, problem)
        for label, verdict, problem in zip(labels, verdicts, problems, strict=True)
        if verdict is not None
    ]
    same = np.array([label == verdict for label, verdict, _ in rows], dtype=float)
    sums = np.stack([same, np.ones_like(same)], axis=1)[:, None]
    share = bootstrap(sums, [row[2] for row in rows], lambda s: s[..., 0] / s[..., 1])
    return CriticAgreement(
        critic=critic,
        chunks=len(labels),
        verdicts=len(rows),
        agreement=share.value,
        low=share.low,
        high=share.high,
        kappa=_kappa([row[:2] for row in rows]),
        passed_positive=_share([verdict for label, verdict, _ in rows if label]),
        found_negative=_share([not verdict for label, verdict, _ in rows if not label]),
    )


def contradicted(labels: Mapping[str, bool], verdicts: Mapping[str, bool | None]) -> frozenset[str]:
    """Ids of the labels that a verdict denies; one without a verdict is left alone."""
    said = {name: verdicts.get(name) for name in labels}
    return frozenset(n for n, verdict in said.items() if verdict not in (None, labels[n]))


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def _kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    if not pairs:
        return None
    ones, others = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    if ones in (0.0, 1.0) or others in (0.0, 1.0):
        return None
    chance = ones * others + (1 - ones) * (1 - others)
    return (sum(a == b for a, b in pairs) / len(pairs) - chance) / (1 - chance)
