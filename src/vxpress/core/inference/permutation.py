"""Whether scores of cells under their own category exceed those under categories of other cells of their group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

N_PERMUTATIONS = 999


@dataclass(frozen=True)
class Exchange:
    """The column with the category of each cell, (n,), and its group, (n,), sorted; categories are exchanged within groups."""

    column_n: np.ndarray
    group_n: np.ndarray


@dataclass(frozen=True)
class Permuted:
    """Mean gain per cell with its 95 % interval, the p-value, and the number of cells; NaN without cells."""

    mean: float
    low: float
    high: float
    p: float
    n_cells: int


def compare(score_nm: np.ndarray, cells: Exchange, rng: np.random.Generator) -> Permuted:
    """Compare the score of each cell under its own category with those under the categories of the other cells of its group.

    ``score_nm`` are scores under the categories of a group. Every group has at least two cells.

    * The mean gain does not depend on the sizes of the groups in expectation: the own cell is not among the others.
    * The interval is that of Student's t over cells, given the numbers of cells of each category. What a category adds to the
      scores of all cells of a group cancels in the sum over them, so it is not part of the spread.
    * The p-value is that of a permutation test of "no gain" against "a gain": the share of 999 permutations within groups, and
      of the observed categories, whose sum is at least as large. Ties count by a random number, so that p is uniform without
      a gain, also if all scores are equal.
    """
    n = len(cells.column_n)
    if n == 0:
        return Permuted(np.nan, np.nan, np.nan, np.nan, 0)
    size_h = np.bincount(cells.group_n)
    size_n = size_h[cells.group_n]
    # relative to the mean over columns, so that rounding errors of large scores do not add up
    score_nm = score_nm - score_nm.mean(1, keepdims=True)
    gain_n = _centred(score_nm, cells, size_h) * size_n / (size_n - 1)
    mean = float(gain_n.mean())
    # centring within a group leaves size - 1 of size degrees of freedom
    se = float(np.sqrt((((gain_n - mean) ** 2) * size_n / (size_n - 1)).sum()) / n)
    half = float(stats.t.ppf(0.975, n - 1)) * se
    return Permuted(mean, mean - half, mean + half, _p_value(score_nm, cells, size_n / (size_n - 1), rng), n)


def _centred(score_nm: np.ndarray, cells: Exchange, size_h: np.ndarray) -> np.ndarray:
    """Compute the own scores minus the means over cells and over categories of the group plus the overall mean, (n,)."""
    n_columns = score_nm.shape[1]
    share_hm = np.zeros((len(size_h), n_columns))
    np.add.at(share_hm, (cells.group_n, cells.column_n), 1.0)
    share_hm /= size_h[:, None]
    mean_hm = np.zeros((len(size_h), n_columns))
    np.add.at(mean_hm, cells.group_n, score_nm)
    mean_hm /= size_h[:, None]
    expected_n = (score_nm * share_hm[cells.group_n]).sum(1)
    overall_h = (mean_hm * share_hm).sum(1)
    own_n = score_nm[np.arange(len(score_nm)), cells.column_n]
    centred: np.ndarray = own_n - expected_n - mean_hm[cells.group_n, cells.column_n] + overall_h[cells.group_n]
    return centred


def _p_value(score_nm: np.ndarray, cells: Exchange, weight_n: np.ndarray, rng: np.random.Generator) -> float:
    n = len(score_nm)
    at, weighted_nm = np.arange(n), score_nm * weight_n[:, None]
    order_bn = np.argsort(cells.group_n + rng.random((N_PERMUTATIONS, n)), axis=1)
    sum_b = weighted_nm[at, cells.column_n[order_bn]].sum(1)
    observed = weighted_nm[at, cells.column_n].sum()
    # sums in another order differ by rounding
    equal_b = np.abs(sum_b - observed) <= 1e-9 * max(1.0, float(np.abs(weighted_nm).max()))
    above = int(((sum_b > observed) & ~equal_b).sum())
    return (1 + above + int(rng.integers(0, int(equal_b.sum()) + 1))) / (1 + N_PERMUTATIONS)
