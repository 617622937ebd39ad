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


def over_groups(score_u: Floats, error_u: Floats, freedom: float, level: float) -> tuple[float, float, float]:
    """Compute the mean over groups with its interval.

    From three groups on the interval is over groups, whose variation includes that of the cells; the variance is at
    least that of the cells. For one or two groups it is over the cells of these groups alone.
    """
    finite = np.isfinite(score_u)
    score, error = score_u[finite], error_u[finite]
    n = len(score)
    if n == 0:
        return float("nan"), float("nan"), float("nan")
    mean, cells = float(score.mean()), float(np.sqrt((error**2).sum()) / n)
    if n < 3:
        half = half_width(cells, freedom, level)
    else:
        half = half_width(max(float(score.std(ddof=1)) / np.sqrt(n), np.nan_to_num(cells)), n - 1, level)
    return mean, mean - half, mean + half


def verdict(low: float, high: float) -> str:
    """Return the verdict on a difference from its interval."""
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"
