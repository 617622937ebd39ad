"""Sums of cells by blocks, for the data and for bootstrap resamples, and halves made of blocks.

Cells are dealt into a few blocks at random. A half of the cells is half of the blocks, so sums over any half cost no
further pass over the cells. A resampled cell keeps its block: copies of a cell never fall into both halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

N_BLOCKS = 8


def deal(n: int, rng: np.random.Generator, n_blocks: int = N_BLOCKS) -> Ints:
    """Deal ``n`` cells into an even number of blocks of almost equal size; fewer blocks for few cells."""
    blocks = max(2, min(n_blocks, n // 2 * 2))
    return np.asarray(rng.permutation(np.arange(n) % blocks), dtype=np.int64)


def halves(n_blocks: int, n_halves: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw ways of splitting the blocks into two halves, (ways, blocks); each is different if there are enough."""
    # the first block is in the first half, so that no way is the complement of another
    all_ways = [(0, *rest) for rest in combinations(range(1, n_blocks), n_blocks // 2 - 1)]
    chosen = rng.permutation(len(all_ways))[:n_halves]
    out = np.zeros((len(chosen), n_blocks), dtype=bool)
    for i, which in enumerate(chosen):
        out[i, list(all_ways[which])] = True
    return out


def resamples(n: int, n_draws: int, rng: np.random.Generator) -> Floats:
    """Draw how often every cell is in each bootstrap resample, (1 + draws, n); the first row is the data itself."""
    drawn = rng.multinomial(n, np.full(n, 1.0 / n), size=n_draws).astype(np.float64)
    return np.concatenate([np.ones((1, n)), drawn.reshape(n_draws, n)])


@dataclass(frozen=True)
class Sums:
    """Weights (resamples, blocks) and weighted sums (resamples, blocks, genes) of cells."""

    weight_bk: Floats
    sum_bkg: Floats

    @classmethod
    def of(cls, x_ng: sparse.csr_matrix, block_n: Ints, n_blocks: int, weight_bn: Floats) -> Sums:
        """Sum the cells of every block with the weights of every resample."""
        sums = np.zeros((len(weight_bn), n_blocks, x_ng.shape[1]))
        weights = np.zeros((len(weight_bn), n_blocks))
        for k in range(n_blocks):
            rows = np.flatnonzero(block_n == k)
            w = weight_bn[:, rows]
            weights[:, k] = w.sum(1)
            if len(rows):
                sums[:, k] = (x_ng[rows].T @ np.ascontiguousarray(w.T)).T
        return cls(weights, sums)

    def mean(self, blocks_k: NDArray[np.bool_] | None = None) -> Floats:
        """Compute means over the cells of these blocks, by default of all, (resamples, genes).

        A resample without cells in the blocks has the mean of all its cells.
        """
        if blocks_k is None:
            return np.asarray(self.sum_bkg.sum(1) / self.weight_bk.sum(1)[:, None])
        total = self.weight_bk[:, blocks_k].sum(1)
        mean = self.sum_bkg[:, blocks_k].sum(1) / np.maximum(total, 1.0)[:, None]
        empty = total == 0
        if empty.any():
            mean[empty] = self.sum_bkg[empty].sum(1) / np.maximum(self.weight_bk[empty].sum(1), 1.0)[:, None]
        return np.asarray(mean)
