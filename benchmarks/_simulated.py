"""Simulated counts in the shape that the speed of single-cell models is quoted for."""

from __future__ import annotations

import anndata as ad
import numpy as np
from scipy import sparse


def simulated(n: int, g: int = 2_000, *, density: float = 0.1, seed: int = 0) -> ad.AnnData:
    """Negative binomial counts of ten groups, with about this share of entries not zero; float32 CSR."""
    rng = np.random.default_rng(seed)
    profiles = np.exp(rng.normal(0, 1.5, g) + rng.normal(0, 0.5, (10, g)))
    profiles /= profiles.sum(1, keepdims=True)
    depth = rng.lognormal(0, 0.3, n)
    group = rng.integers(10, size=n)

    def share(total: float) -> float:
        some = slice(0, min(n, 500))
        mean = total * depth[some, None] * profiles[group[some]]
        return float((1 - (1 + mean / 2) ** -2).mean())

    low, high = 1.0, 1e7
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if share(middle) < density else (low, middle)
    blocks = []
    for start in range(0, n, 10_000):
        part = slice(start, start + 10_000)
        mean = low * depth[part, None] * profiles[group[part]]
        blocks.append(sparse.csr_matrix(rng.poisson(rng.gamma(2.0, mean / 2.0)).astype(np.float32)))
    return ad.AnnData(sparse.vstack(blocks, format="csr"))
