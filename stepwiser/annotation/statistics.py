"""Means and standard errors of independent values."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, sqrt

Z95 = 1.959963984540054
"""Standard errors of a normal distribution to either side that hold 95% of it."""


def known(values: Sequence[float]) -> list[float]:
    """Those that are not nan: what could not be found out is left out, not counted as 0."""
    return [value for value in values if not isnan(value)]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of independent values; the error is nan for fewer than two."""
    count = len(values)
    if count == 0:
        return float("nan"), float("nan")
    mean = sum(values) / count
    if count == 1:
        return mean, float("nan")
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, sqrt(variance / count)
