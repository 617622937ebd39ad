"""Support of a prediction: how near the predicted cells are to cells that were treated."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from vxpress.core.progress import steps

# the distance of a cell is that to this many treated cells, and at most this many treated cells are searched
NEIGHBORS, MOST = 10, 20_000
CHUNK = 4096


def support_of(z_md: np.ndarray, treated_nd: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Compute the share of treated cells that are as far from other treated cells as each position is, or farther.

    The distance is that to the 10th nearest treated cell, or to a third of them if there are few. A score of 0.5 is the
    typical density of treated cells; 0 means that no treated cell is as far from the others. float64 (m,).
    """
    if len(treated_nd) < 3:
        return np.zeros(len(z_md))
    if len(treated_nd) > MOST:
        treated_nd = treated_nd[rng.permutation(len(treated_nd))[:MOST]]
    k = min(NEIGHBORS, max(1, len(treated_nd) // 3))
    tree = cKDTree(treated_nd)
    own = np.sort(tree.query(treated_nd, k=[k + 1])[0][:, 0])
    out = np.empty(len(z_md))
    for start in steps(range(0, len(z_md), CHUNK), "finding neighbors"):
        part = slice(start, start + CHUNK)
        far = tree.query(z_md[part], k=[k])[0][:, 0]
        out[part] = 1.0 - np.searchsorted(own, far, side="left") / len(own)
    return out
