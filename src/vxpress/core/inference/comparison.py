"""Which of some models gives held-out cells the higher likelihood, and how surely.

Bounds of every cell under every fit are given with many importance samples and with fewer.  A difference of means has
two kinds of uncertainty: an interval, over cells (paired) and over fits that differ by their seed, and what is left of
the looseness of the bounds, of which the gain from the fewer samples to the many is a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Scores:
    """Bounds in nats of the same cells under fits of one model that differ by their seed, each (fits, cells)."""

    many_sn: np.ndarray
    few_sn: np.ndarray

    @cached_property
    def mean(self) -> float:
        """Nats per cell, with many samples."""
        return float(self.many_sn.mean())

    @cached_property
    def fewer(self) -> float:
        """Nats per cell, with few samples."""
        return float(self.few_sn.mean())

    @property
    def gap(self) -> float:
        """What the bound gained from fewer samples to many; a tight one can lose a trifle, by chance."""
        return max(0.0, self.mean - self.fewer)

    def seed_variance(self) -> tuple[float, int]:
        """Variance of the mean from the seeds, and its degrees of freedom; nothing is known of it from one fit."""
        n_fits = len(self.many_sn)
        return (0.0, 0) if n_fits == 1 else (float(self.many_sn.mean(1).var(ddof=1)) / n_fits, n_fits - 1)

    def se(self) -> float:
        """Standard error of the mean, over cells and, where there are several fits, seeds."""
        return float(np.sqrt(_cell_variance(self.many_sn.mean(0)) + self.seed_variance()[0]))


@dataclass(frozen=True)
class Difference:
    """Nats per cell by which one model is above another: estimate, interval, and the scale of what the bounds lack."""

    estimate: float
    low: float
    high: float
    gap: float

    @property
    def decided(self) -> bool:
        """Whether the interval leaves zero out and the bounds are tight enough to tell."""
        return bool((self.low > 0 or self.high < 0) and abs(self.estimate) > self.gap)


def difference(a: Scores, b: Scores, level: float = LEVEL) -> Difference:
    """How far ``a`` is above ``b`` on the same cells.

    The variance adds up the paired one over cells and that over the seeds of each model; the interval is Student's with
    degrees of freedom after Welch and Satterthwaite.
    """
    d_n = a.many_sn.mean(0) - b.many_sn.mean(0)
    parts = [(_cell_variance(d_n), len(d_n) - 1), a.seed_variance(), b.seed_variance()]
    variance = sum(v for v, _ in parts)
    estimate, half = float(d_n.mean()), 0.0
    if not np.isfinite(variance):
        half = np.inf
    elif variance > 0:
        freedom = variance**2 / sum(v**2 / df for v, df in parts if df)
        half = float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance))
    return Difference(estimate, estimate - half, estimate + half, max(a.gap, b.gap))


def ranking(scores: Sequence[Scores]) -> list[int]:
    """Positions from the highest mean to the lowest; equals stay in the order given."""
    return sorted(range(len(scores)), key=lambda i: -scores[i].mean)


def verdict(to_best: Difference | None) -> str:
    """What the difference of a model from the best one says of it; the best itself has none."""
    if to_best is None:
        return "best"
    return "worse" if to_best.decided else "undecided"


def _cell_variance(values_n: np.ndarray) -> float:
    """Variance of a mean over cells; a single cell tells nothing of it."""
    return float(values_n.var(ddof=1)) / len(values_n) if len(values_n) > 1 else np.inf
