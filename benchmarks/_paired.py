"""Differences of scores between methods over seeds, with intervals by Student's t distribution."""

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


def compared(
    ours: Mapping[int, float], other: Mapping[int, float], *, deterministic: bool = False
) -> Difference | None:
    """Compare values by seed; ``None`` if there is nothing to compare.

    The one value of a deterministic method is paired with every seed. With the same seeds, values are paired. If a method
    was run with fewer seeds, which have nothing but their number in common with ours, the interval is that of two samples
    with a common variance.
    """
    if not ours or not other:
        return None
    if deterministic:
        return of_values([value - mean(other) for value in ours.values()])
    if set(ours) != set(other) and min(len(ours), len(other)) > 1:
        a, b = list(ours.values()), list(other.values())
        free = len(a) + len(b) - 2
        variance = (np.var(a) * len(a) + np.var(b) * len(b)) / free
        half = stats.t.ppf(0.975, free) * np.sqrt(variance * (1 / len(a) + 1 / len(b)))
        return Difference(mean(ours) - mean(other), float(half), min(len(a), len(b)))
    common = [seed for seed in ours if seed in other]
    return of_values([ours[seed] - other[seed] for seed in common]) if common else None


def mean(values: Mapping[int, float]) -> float:
    """Average over seeds."""
    return float(np.mean(list(values.values())))


def paired(ours: Mapping[str, Any], other: Mapping[str, Any], metric: str) -> Difference | None:
    """Compare two methods on a data set."""
    return compared(by_seed(ours, metric), by_seed(other, metric), deterministic=other["deterministic"])


def averaged(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], metrics: Sequence[str]) -> Difference | None:
    """Compare two methods on average over data sets, each with its metric, by seeds that all data sets have."""
    values = [
        (by_seed(ours, metric), by_seed(other, metric), other["deterministic"])
        for (ours, other), metric in zip(pairs, metrics, strict=True)
    ]
    values = [each for each in values if each[0] and each[1]]
    if not values:
        return None
    ours, other = (_over_sets([each[i] for each in values]) for i in (0, 1))
    return compared(ours, other, deterministic=any(each[2] for each in values))


def _over_sets(values: Sequence[Mapping[int, float]]) -> dict[int, float]:
    seeds = set.intersection(*(set(each) for each in values))
    return {seed: float(np.mean([each[seed] for each in values])) for seed in sorted(seeds)}
