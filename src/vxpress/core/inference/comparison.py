"""Compare models by the likelihood of held-out cells, with uncertainty.

The bounds of every cell under every fit are given for many and for fewer importance samples.  A difference of means has
two kinds of uncertainty. The first is an interval over cells (paired) and over fits that differ by their seed. The
second is that the bounds are not tight; the gain from fewer to many samples measures how much.
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
        """Mean bound in nats per cell, with many samples."""
        return float(self.many_sn.mean())

    @cached_property
    def fewer(self) -> float:
        """Mean bound in nats per cell, with fewer samples."""
        return float(self.few_sn.mean())

    @property
    def gap(self) -> float:
        """Gain of the bound from fewer to many samples.

        A slight loss, which a tight bound can show by chance, counts as 0.
        """
        return max(0.0, self.mean - self.fewer)

    def seed_variance(self) -> tuple[float, int]:
        """Compute the variance of the mean over seeds, and its degrees of freedom; (0, 0) for a single fit."""
        n_fits = len(self.many_sn)
        return (0.0, 0) if n_fits == 1 else (float(self.many_sn.mean(1).var(ddof=1)) / n_fits, n_fits - 1)

    def se(self) -> float:
        """Compute the standard error of the mean over cells and, with several fits, over seeds."""
        return float(np.sqrt(_cell_variance(self.many_sn.mean(0)) + self.seed_variance()[0]))


@dataclass(frozen=True)
class Difference:
    """Difference of two models in nats per cell: estimate, interval, and how far the bounds may be from tight."""

    estimate: float
    low: float
    high: float
    gap: float

    @property
    def decided(self) -> bool:
        """Whether the interval excludes zero and the bounds are tight enough to decide."""
        return bool((self.low > 0 or self.high < 0) and abs(self.estimate) > self.gap)


def difference(a: Scores, b: Scores, level: float = LEVEL) -> Difference:
    """Compute by how much ``a`` exceeds ``b`` on the same cells.

    The variance is the sum of the paired variance over cells and the variances over the seeds of each model. The
    interval is Student's, with the degrees of freedom of Welch and Satterthwaite.
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
    """Return positions from the highest mean to the lowest; ties stay in the order given."""
    return sorted(range(len(scores)), key=lambda i: -scores[i].mean)


def verdict(to_best: Difference | None) -> str:
    """Return the verdict on a model from its difference to the best one; for the best itself, ``to_best`` is None."""
    if to_best is None:
        return "best"
    return "worse" if to_best.decided else "undecided"


def _cell_variance(values_n: np.ndarray) -> float:
    """Compute the variance of a mean over cells; infinite for a single cell."""
    return float(values_n.var(ddof=1)) / len(values_n) if len(values_n) > 1 else np.inf
