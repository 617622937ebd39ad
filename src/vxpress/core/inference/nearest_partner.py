"""For each new cell, draw one of the nearest real cells."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from vxpress.core.progress import steps

CHUNK = 8192


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
