"""Whether cells like a given one occur under a condition: neighbours in the latent space."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import cKDTree

from vxpress.core.progress import steps

# neighbours looked at: at least so many, enough to expect so many of the condition, but no more than this share of cells
LEAST_NEIGHBORS, EXPECTED, LARGEST_SHARE = 30, 5, 1 / 20
# cells whose neighbours are looked up at a time
CHUNK = 8192


def neighborhood_size(weight_n: np.ndarray) -> int:
    """How many neighbours :func:`local_support` looks at by default, given the weights of the condition."""
    n = len(weight_n)
    wanted = max(LEAST_NEIGHBORS, math.ceil(EXPECTED / max(float(weight_n.mean()), 1 / n)))
    return max(1, min(wanted, max(LEAST_NEIGHBORS, int(LARGEST_SHARE * n)), n - 1))


def local_support(mean_nd: np.ndarray, weight_n: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Mean weight of each cell's nearest neighbours, itself left out, over the mean weight of all cells, float64 (n,).

    The mean of all is at least that of one cell of weight 1, so that a condition without a cell has no support.
    """
    n = len(mean_nd)
    overall = max(float(weight_n.mean()), 1 / n)
    if n < 2:
        return np.asarray(weight_n / overall, dtype=np.float64)
    k = min(n_neighbors, n - 1)
    tree = cKDTree(mean_nd)
    out = np.empty(n)
    for start in steps(range(0, n, CHUNK), "finding neighbors"):
        rows = np.arange(start, min(start + CHUNK, n))
        near = tree.query(mean_nd[rows], k=k + 1)[1]
        itself = near == rows[:, None]
        # among cells at the very same place a cell need not find itself
        itself[~itself.any(1), -1] = True
        out[rows] = np.where(itself, 0.0, weight_n[near]).sum(1) / k
    return out / overall


def closeness(value_n: np.ndarray, at: float) -> np.ndarray:
    """Gaussian kernel around ``at``, 1 where a value equals it, with the bandwidth of Silverman (1986, eq. 3.31)."""
    low, high = np.quantile(value_n, [0.25, 0.75])
    spread = float(value_n.std())
    if high > low:
        spread = min(spread, float(high - low) / 1.34)
    width = 0.9 * spread * len(value_n) ** -0.2
    if width == 0:
        return (value_n == at).astype(np.float64)
    return np.asarray(np.exp(-0.5 * np.square((value_n - at) / width)))
