"""Intervals from bootstrap resamples, over cells and over groups, and the verdict they give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


def standard_error(resampled_b: Floats, n: int) -> float:
    """Compute a standard error from scores of resamples of ``n`` cells; NaN if fewer than two are finite.

    A resample of n cells varies less than a new sample, by the factor (n - 1) / n of the variance.
    """
    finite = resampled_b[np.isfinite(resampled_b)]
    if len(finite) < 2 or n < 2:
        return float("nan")
    return float(finite.std(ddof=1) * np.sqrt(n / (n - 1)))


def half_width(error: float, freedom: float, level: float) -> float:
    """Half the width of Student's interval."""
    return float(error * stats.t.ppf((1 + level) / 2, max(freedom, 1)))


def mean_over(value_ub: Sequence[Floats], n: int) -> tuple[Floats, float]:
    """Return the values of groups for the data, and the standard error over cells of their mean.

    Groups that share control cells share their resamples, so the mean is taken within each resample. Groups without a
    finite value are left out.
    """
    value_u = np.array([value[0] for value in value_ub])
    finite = np.isfinite(value_u)
    if not finite.any():
        return value_u, float("nan")
    size = min(len(value) for value in value_ub)
    resampled = np.stack([value[1:size] for value, keep in zip(value_ub, finite, strict=True) if keep])
    return value_u, standard_error(resampled.mean(0), n)


def over_cells(value_u: Floats, error: float, freedom: float, level: float) -> tuple[float, float, float]:
    """Compute the mean over these groups with its interval over their cells, from its standard error."""
    finite = value_u[np.isfinite(value_u)]
    mean = float(finite.mean()) if len(finite) else float("nan")
    half = half_width(error, freedom, level)
    return mean, mean - half, mean + half


def over_groups(value_u: Floats, error: float, freedom: float, level: float) -> tuple[float, float, float]:
    """Compute the mean over groups with its interval over groups, whose variation includes that of their cells.

    The variance is at least that over cells. Two groups or fewer say nothing about others: the interval is then that
    over cells.
    """
    finite = value_u[np.isfinite(value_u)]
    n = len(finite)
    if n < 3:
        return over_cells(value_u, error, freedom, level)
    half = half_width(max(float(finite.std(ddof=1)) / np.sqrt(n), float(np.nan_to_num(error))), n - 1, level)
    return float(finite.mean()), float(finite.mean()) - half, float(finite.mean()) + half


def verdict(low: float, high: float) -> str:
    """Return the verdict on a difference from its interval."""
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"
