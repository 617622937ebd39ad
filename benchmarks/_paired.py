"""Paired differences of scores over seeds, with intervals by Student's t distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

# a difference whose interval ends below this is a loss
MARGIN = -0.01


@dataclass(frozen=True)
class Difference:
    """Mean difference and its 95 % interval; without an interval (NaN) if there is one pair only."""

    value: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.value - self.half

    def text(self, digits: int = 3) -> str:
        """Format for a terminal."""
        return f"{self.value:+.{digits}f} ± {self.half:.{digits}f} ({self.n} seeds)"


def of_values(differences: Sequence[float]) -> Difference:
    """Compute mean and interval of differences."""
    n = len(differences)
    half = stats.t.ppf(0.975, n - 1) * stats.sem(differences) if n > 1 else np.nan
    return Difference(float(np.mean(differences)), float(half), n)


def by_seed(method: Mapping[str, Any], metric: str) -> dict[int, float]:
    """Return the values of a metric by seed, those that were computed."""
    values = method["scores"].get(metric, [])
    return {seed: value for seed, value in zip(method["seeds"], values, strict=False) if value is not None}


def differences(ours: Mapping[str, Any], other: Mapping[str, Any], metric: str) -> dict[int, float]:
    """Return differences by seed; the one value of a deterministic method is paired with every seed."""
    a, b = by_seed(ours, metric), by_seed(other, metric)
    if other["deterministic"] and b:
        (only,) = b.values()
        return {seed: value - only for seed, value in a.items()}
    return {seed: a[seed] - b[seed] for seed in a if seed in b}


def paired(ours: Mapping[str, Any], other: Mapping[str, Any], metric: str) -> Difference | None:
    """Compare two methods on a data set; ``None`` if there is nothing to pair."""
    found = differences(ours, other, metric)
    return of_values(list(found.values())) if found else None
