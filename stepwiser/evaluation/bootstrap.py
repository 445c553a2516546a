"""Intervals by resampling problems: solutions of one problem are no independent evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Bootstrapped:
    """A figure with its 95% interval; None where it cannot be had."""

    value: float | None
    low: float | None
    high: float | None
    problems: int


def bootstrap(
    sums: np.ndarray,
    problems: Sequence[str],
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
) -> Bootstrapped:
    """A statistic of summed counts, and the middle 95% of it over resampled problems.

    Args:
        sums: counts of every item and vote, [items, votes, k].
        problems: the problem of each item.
        statistic: of counts [..., k], one figure each; nan where it is undefined. Votes are
            evaluations of their own, and the figure is their mean.

    Resamples without a figure are left out. There is no interval with one problem, nor where all
    resamples are alike: outcomes without any variation bound nothing.
    """
    names = sorted(set(problems))
    places = {name: i for i, name in enumerate(names)}
    grouped = np.zeros((len(names), *sums.shape[1:]))
    np.add.at(grouped, [places[name] for name in problems], sums)
    value = float(np.mean(statistic(grouped.sum(0)))) if names else float("nan")
    if np.isnan(value):
        return Bootstrapped(None, None, None, len(names))
    if len(names) < 2:
        return Bootstrapped(value, None, None, len(names))
    times = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES
    )
    values = statistic(np.tensordot(times, grouped, axes=1)).mean(-1)
    low, high = np.quantile(values[~np.isnan(values)], [0.025, 0.975])
    if low == high:
        return Bootstrapped(value, None, None, len(names))
    return Bootstrapped(value, float(low), float(high), len(names))
