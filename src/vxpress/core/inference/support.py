"""Neighbours in the latent space: whether cells of a condition are among them, and a random one of them."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import cKDTree

from vxpress.core.progress import steps

# number of neighbours: at least this many, enough to expect this many of the condition, at most this share of all cells
LEAST_NEIGHBORS, EXPECTED, LARGEST_SHARE = 30, 5, 1 / 20
# number of cells whose neighbours are searched at a time
CHUNK = 8192


def neighborhood_size(weight_n: np.ndarray) -> int:
    """Compute the default number of neighbours of :func:`local_support` from the weights of the condition."""
    n = len(weight_n)
    wanted = max(LEAST_NEIGHBORS, math.ceil(EXPECTED / max(float(weight_n.mean()), 1 / n)))
    return max(1, min(wanted, max(LEAST_NEIGHBORS, int(LARGEST_SHARE * n)), n - 1))


def local_support(mean_nd: np.ndarray, weight_n: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Compute the mean weight of each cell's nearest neighbours divided by the mean weight of all cells, float64 (n,).

    A cell is not its own neighbour. The mean of all cells is at least that of a single cell of weight 1, so a condition
    without cells has no support.
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
        # with identical positions, a cell may not find itself
        itself[~itself.any(1), -1] = True
        out[rows] = np.where(itself, 0.0, weight_n[near]).sum(1) / k
    return out / overall


def closeness(value_n: np.ndarray, at: float) -> np.ndarray:
    """Compute a Gaussian kernel around ``at`` (1 at ``at``), with the bandwidth of Silverman (1986, eq. 3.31)."""
    low, high = np.quantile(value_n, [0.25, 0.75])
    spread = float(value_n.std())
    if high > low:
        spread = min(spread, float(high - low) / 1.34)
    width = 0.9 * spread * len(value_n) ** -0.2
    if width == 0:
        return (value_n == at).astype(np.float64)
    return np.asarray(np.exp(-0.5 * np.square((value_n - at) / width)))


def nearest_partners(
    z_md: np.ndarray, mean_nd: np.ndarray, n_neighbors: int | None, rng: np.random.Generator
) -> np.ndarray:
    """Draw a row of ``mean_nd`` for each row of ``z_md``, uniformly among its ``n_neighbors`` nearest (None: all)."""
    m, n = len(z_md), len(mean_nd)
    if n_neighbors is None or n_neighbors >= n:
        return rng.integers(n, size=m)
    tree, out = cKDTree(mean_nd), np.empty(m, dtype=np.int64)
    for start in steps(range(0, m, CHUNK), "finding neighbors"):
        part = z_md[start : start + CHUNK]
        near = tree.query(part, k=np.arange(1, n_neighbors + 1))[1]
        out[start : start + CHUNK] = near[np.arange(len(part)), rng.integers(n_neighbors, size=len(part))]
    return out
