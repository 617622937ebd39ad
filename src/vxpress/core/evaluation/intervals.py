"""Intervals from bootstrap resamples, over cells and over groups, and the verdict they give."""

from __future__ import annotations

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


def over_cells(score_u: Floats, error_u: Floats, freedom: float, level: float) -> tuple[float, float, float]:
    """Compute the mean over these groups with its interval over their cells."""
    finite = np.isfinite(score_u)
    n = int(finite.sum())
    if n == 0:
        return float("nan"), float("nan"), float("nan")
    mean, error = float(score_u[finite].mean()), float(np.sqrt((error_u[finite] ** 2).sum()) / n)
    half = half_width(error, freedom, level)
    return mean, mean - half, mean + half


def over_groups(score_u: Floats, error_u: Floats, freedom: float, level: float) -> tuple[float, float, float]:
    """Compute the mean over groups with its interval over groups, whose variation includes that of their cells.

    The variance is at least that of the cells. Two groups or fewer say nothing about others: the interval is then that
    over cells.
    """
    mean, low, high = over_cells(score_u, error_u, freedom, level)
    finite = np.isfinite(score_u)
    n = int(finite.sum())
    if n < 3:
        return mean, low, high
    cells = np.nan_to_num(np.sqrt((error_u[finite] ** 2).sum()) / n)
    half = half_width(max(float(score_u[finite].std(ddof=1)) / np.sqrt(n), cells), n - 1, level)
    return mean, mean - half, mean + half


def verdict(low: float, high: float) -> str:
    """Return the verdict on a difference from its interval."""
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"
