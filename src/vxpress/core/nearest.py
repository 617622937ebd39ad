"""Nearest cells when neither of two cells is known exactly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse

# up to so many cells every pair is looked at; beyond, candidates from an approximate search
EXACT_CELLS = 32_768
# entries of one block of pairs: 32 MB
BLOCK_ENTRIES = 2**23
# what float32 may put in the wrong order is put right among a few more than asked for
SPARE = 8
# of the variance of a dimension over all cells, the least share that a cell is said to have resolved
MIN_RESOLVED = 0.01


def likelihood_of(mean_nd: np.ndarray, var_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Peak and precision of what the counts of each cell say about z, float64 (n, d), without what all cells say.

    Posterior is population times likelihood, the population a normal distribution with the mean and the variance, that
    of means plus mean of variances, of the posteriors together; so the precisions of population and likelihood add up.
    """
    mean_nd, var_nd = mean_nd.astype(np.float64), var_nd.astype(np.float64)
    centre_d, population_d = mean_nd.mean(0), mean_nd.var(0) + var_nd.mean(0)
    resolved_nd = np.maximum(1.0 - var_nd / population_d, MIN_RESOLVED)
    return centre_d + (mean_nd - centre_d) / resolved_nd, resolved_nd / var_nd


def nearest(
    peak_nd: np.ndarray, precision_nd: np.ndarray, mean_nd: np.ndarray, var_nd: np.ndarray, k: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` cells j other than i with the least sum over d of precision_id ((mean_jd - peak_id)^2 + var_jd).

    Returns indices (n, k), nearest first, and these sums, float64.
    """
    n = len(mean_nd)
    peak_nd, precision_nd, mean_nd, var_nd = (
        np.ascontiguousarray(part, dtype=np.float64) for part in (peak_nd, precision_nd, mean_nd, var_nd)
    )
    blocks = _every_pair if n <= EXACT_CELLS else _near_pairs
    index_nk, squared_nk = np.empty((n, k), dtype=np.int64), np.empty((n, k))
    for rows, candidates in blocks(peak_nd, precision_nd, mean_nd, var_nd, k, seed):
        difference = mean_nd[candidates] - peak_nd[rows, None]
        squared = (precision_nd[rows, None] * (difference**2 + var_nd[candidates])).sum(-1)
        squared[candidates == np.arange(rows.start, rows.stop)[:, None]] = np.inf
        # equal sums, of identical cells, come in the order of the cells
        order = np.lexsort((candidates, squared), axis=-1)[:, :k]
        index_nk[rows] = np.take_along_axis(candidates, order, 1)
        squared_nk[rows] = np.take_along_axis(squared, order, 1)
    return index_nk, squared_nk


Blocks = Iterator[tuple[slice, np.ndarray]]


def _every_pair(
    peak_nd: np.ndarray, precision_nd: np.ndarray, mean_nd: np.ndarray, var_nd: np.ndarray, k: int, seed: int
) -> Blocks:
    """Candidates after all pairs were compared: the sum is a product of what belongs to i and what belongs to j."""
    del seed
    n = len(mean_nd)
    centre_d = mean_nd.mean(0)
    peak_nd, mean_nd = peak_nd - centre_d, mean_nd - centre_d
    # of each row only the order matters, so that it may be scaled
    weight_nd = precision_nd / precision_nd.sum(1, keepdims=True)
    of_i = torch.from_numpy(np.hstack([weight_nd, -2.0 * weight_nd * peak_nd]).astype(np.float32))
    of_j = torch.from_numpy(np.hstack([mean_nd**2 + var_nd, mean_nd]).astype(np.float32)).T.contiguous()
    step = max(1, BLOCK_ENTRIES // n)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        pairs = of_i[rows] @ of_j
        yield rows, torch.topk(pairs, min(n, k + 1 + SPARE), dim=1, largest=False, sorted=False).indices.numpy()


def _near_pairs(
    peak_nd: np.ndarray, precision_nd: np.ndarray, mean_nd: np.ndarray, var_nd: np.ndarray, k: int, seed: int
) -> Blocks:
    """Candidates with the precision that cells have on average, for which the sum is a Euclidean distance."""
    from pynndescent import NNDescent

    n, scale_d = len(mean_nd), np.sqrt(precision_nd.mean(0))
    scale_d /= np.sqrt((scale_d**2).mean())
    uncertain_n1 = np.sqrt((scale_d**2 * var_nd).sum(1, keepdims=True))
    keys = np.hstack([scale_d * mean_nd, uncertain_n1]).astype(np.float32)
    queries = np.hstack([scale_d * peak_nd, np.zeros((n, 1))]).astype(np.float32)
    n_candidates = min(n - 1, max(3 * k, 60))
    index = NNDescent(keys, n_neighbors=30, random_state=seed)
    step = 8192
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        yield rows, index.query(queries[rows], k=n_candidates)[0].astype(np.int64)


def edge_frequency(
    mean_nd: np.ndarray, var_nd: np.ndarray, precision_nd: np.ndarray, k: int, n_draws: int, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Share of draws of all cells in which j is among the ``k`` nearest of i, float32 (n, n); rows sum to ``k``."""
    n, none_nd = len(mean_nd), np.zeros_like(mean_nd)
    sd_nd = np.sqrt(var_nd)
    indptr = np.arange(0, n * k + 1, k)
    count = sparse.csr_matrix((n, n), dtype=np.float32)
    for _ in range(n_draws):
        z_nd = mean_nd + sd_nd * rng.standard_normal(mean_nd.shape)
        index_nk, _ = nearest(z_nd, precision_nd, z_nd, none_nd, k, int(rng.integers(2**31)))
        count = count + sparse.csr_matrix((np.ones(n * k, np.float32), np.sort(index_nk, 1).ravel(), indptr), (n, n))
    count.data /= n_draws
    return count
