"""Names of the scores, which values are good, and how the score of a repeated experiment follows from that of halves."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Good = Literal["high", "low", "one"]

MEASURES: dict[str, Good] = {
    "pearson2_mean": "high",
    "r2_mean": "high",
    "mse_mean": "low",
    "pearson_change": "high",
    "pearson2_change": "high",
    "r2_change": "high",
    "mse_change": "low",
    "weighted_mse_change": "low",
    "weighted_r2_change": "high",
    "slope_change": "one",
    "sign_agreement": "high",
    "deg_overlap": "high",
    "r2_sd": "high",
    "energy_distance": "low",
    "mmd": "low",
    "rank": "high",
}
RANGES: dict[str, tuple[float, float]] = {
    "pearson2_mean": (0, 1),
    "r2_mean": (-np.inf, 1),
    "mse_mean": (0, np.inf),
    "pearson_change": (-1, 1),
    "pearson2_change": (0, 1),
    "r2_change": (-np.inf, 1),
    "mse_change": (0, np.inf),
    "weighted_mse_change": (0, np.inf),
    "weighted_r2_change": (-np.inf, 1),
    "sign_agreement": (0, 1),
    "deg_overlap": (0, 1),
    "r2_sd": (-np.inf, 1),
    "rank": (0, 1),
}


def goodness(measure: str, score: Floats) -> Floats:
    """Return values of which larger is better: a score, its negative, or its negative distance from 1."""
    if MEASURES[measure] == "high":
        return score
    return -score if MEASURES[measure] == "low" else -np.abs(score - 1.0)


def clipped(measure: str, score: Floats) -> Floats:
    """Restrict scores, as ends of an interval, to the range of the measure."""
    return np.clip(score, *RANGES.get(measure, (-np.inf, np.inf)))


def spearman_brown(half: Floats, chance: float = 0.0) -> Floats:
    """Return the agreement of two samples of twice the size, 2 r / (1 + r), with r rescaled so that chance is 0.

    It is the reliability of a test of double length. Agreement below chance is left as it is.
    """
    r = (half - chance) / (1.0 - chance)
    full = np.where(r > 0, 2.0 * r / (1.0 + np.maximum(r, 0.0)), r)
    return np.asarray(chance + (1.0 - chance) * full)
