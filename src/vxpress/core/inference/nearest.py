"""Nearest cells when the positions of both cells are uncertain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from vxpress.core.progress import parts, steps

# up to this many cells every pair is compared; with more, only cells of the nearest clusters
EXACT_CELLS = 32_768
PROBES, LLOYD_STEPS = 32, 5
# entries of one block of pairs: 32 MB
BLOCK_ENTRIES = 2**23
# additional candidates in float32, so that the exact order can be found among them
SPARE = 8
Block: TypeAlias = tuple[np.ndarray, np.ndarray]
# least share of the variance of a dimension over all cells that counts as resolved in a cell
MIN_RESOLVED = 0.01


def likelihood_of(mean_nd: np.ndarray, var_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute peak and precision of each cell's likelihood of z, float64 (n, d), with the population's part removed.

    The posterior is proportional to population times likelihood. The population is a normal distribution with the mean
    and the variance of all posteriors together (variance of means plus mean of variances). So the precisions of
    population and likelihood add up to that of the posterior.
    """
    mean_nd, var_nd = mean_nd.astype(np.float64), var_nd.astype(np.float64)
    centre_d, population_d = mean_nd.mean(0), mean_nd.var(0) + var_nd.mean(0)
    resolved_nd = np.maximum(1.0 - var_nd / population_d, MIN_RESOLVED)
    return centre_d + (mean_nd - centre_d) / resolved_nd, resolved_nd / var_nd


def nearest(
    peak_nd: np.ndarray, precision_nd: np.ndarray, mean_nd: np.ndarray, var_nd: np.ndarray, k: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the ``k`` cells j other than i with the least sum over d of precision_id ((mean_jd - peak_id)^2 + var_jd).

    Returns indices (n, k), nearest first, and these sums, float64.
    """
    n = len(mean_nd)
    peak_nd, precision_nd, mean_nd, var_nd = (
        np.ascontiguousarray(part, dtype=np.float64) for part in (peak_nd, precision_nd, mean_nd, var_nd)
    )
    blocks: Iterable[Block] = [(np.arange(n), np.arange(n))]
    if n > EXACT_CELLS:
        blocks = _near_blocks(peak_nd, precision_nd, mean_nd, var_nd, k + 1 + SPARE, seed)
    index_nk, squared_nk = np.empty((n, k), dtype=np.int64), np.empty((n, k))
    of_i, of_j = _factors(peak_nd, precision_nd, mean_nd, var_nd)
    for (rows, candidates), progress in parts(_best_of(blocks, of_i, of_j, k + 1 + SPARE), "finding neighbors", n):
        progress.done += len(rows)
        difference = mean_nd[candidates] - peak_nd[rows, None]
        squared = (precision_nd[rows, None] * (difference**2 + var_nd[candidates])).sum(-1)
        squared[candidates == rows[:, None]] = np.inf
        # equal sums (identical cells) are in the order of the cells
        order = np.lexsort((candidates, squared), axis=-1)[:, :k]
        index_nk[rows] = np.take_along_axis(candidates, order, 1)
        squared_nk[rows] = np.take_along_axis(squared, order, 1)
    return index_nk, squared_nk


def _factors(
    peak_nd: np.ndarray, precision_nd: np.ndarray, mean_nd: np.ndarray, var_nd: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Factorise the sums into terms of i, (n, 2 d), and terms of j, up to scale and offset of each row."""
    centre_d = mean_nd.mean(0)
    peak_nd, mean_nd = peak_nd - centre_d, mean_nd - centre_d
    weight_nd = precision_nd / precision_nd.sum(1, keepdims=True)
    of_i = np.hstack([weight_nd, -2.0 * weight_nd * peak_nd])
    return _tensor(of_i), _tensor(np.hstack([mean_nd**2 + var_nd, mean_nd]))


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _best_of(blocks: Iterable[Block], of_i: Tensor, of_j: Tensor, m: int) -> Iterator[Block]:
    """Yield cells i, a few at a time, with their ``m`` best cells j of the block, unordered."""
    for rows, columns in blocks:
        keys = of_j[torch.from_numpy(columns)].T.contiguous()
        step = max(1, BLOCK_ENTRIES // len(columns))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            pairs = of_i[torch.from_numpy(part)] @ keys
            best = torch.topk(pairs, min(len(columns), m), dim=1, largest=False, sorted=False).indices.numpy()
            yield part, columns[best]


def _near_blocks(
    peak_nd: np.ndarray, precision_nd: np.ndarray, mean_nd: np.ndarray, var_nd: np.ndarray, least: int, seed: int
) -> Iterator[Block]:
    """Yield cells with neighbouring peaks, and the cells that can be near them: an inverted file over k-means clusters.

    Distances to clusters use the mean precision of all cells.
    """
    n, scale_d = len(mean_nd), np.sqrt(precision_nd.mean(0))
    uncertain_n1 = np.sqrt((scale_d**2 * var_nd).sum(1, keepdims=True))
    keys = _tensor(np.hstack([scale_d * mean_nd, uncertain_n1]))
    queries = _tensor(np.hstack([scale_d * peak_nd, np.zeros((n, 1))]))
    order = np.random.default_rng(seed).permutation(n)
    n_clusters = max(2, int(np.sqrt(n)))
    sample, centres = keys[order[: 64 * n_clusters]], keys[order[:n_clusters]].clone()
    for _ in range(LLOYD_STEPS):
        own = _nearest_centre(sample, centres)
        size = torch.bincount(own, minlength=n_clusters)
        sums = torch.zeros_like(centres).index_add_(0, own, sample)
        centres = torch.where(size[:, None] > 0, sums / size[:, None].clamp(min=1), centres)
    cluster_of_key, cluster_of_query = _nearest_centre(keys, centres), _nearest_centre(queries, centres)
    members = _members(cluster_of_key.numpy(), n_clusters)
    for rows in _members(cluster_of_query.numpy(), n_clusters):
        if not len(rows):
            continue
        nearest_first = torch.cdist(queries[torch.from_numpy(rows)].mean(0, keepdim=True), centres)[0].argsort(
            stable=True
        )
        sizes = np.cumsum([len(members[c]) for c in nearest_first])
        n_probes = max(PROBES, int(np.searchsorted(sizes, least)) + 1)
        yield rows, np.sort(np.concatenate([members[c] for c in nearest_first[:n_probes]]))


def _nearest_centre(points: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([torch.cdist(part, centres).argmin(1) for part in points.split(8192)])


def _members(cluster_n: np.ndarray, n_clusters: int) -> list[np.ndarray]:
    order = np.argsort(cluster_n, kind="stable")
    return np.split(order, np.searchsorted(cluster_n[order], np.arange(1, n_clusters)))


def edge_frequency(
    mean_nd: np.ndarray,
    var_nd: np.ndarray,
    precision_nd: np.ndarray,
    k: int,
    n_draws: int,
    rng: np.random.Generator,
    n_models: int = 1,
) -> sparse.csr_matrix:
    """Compute the share of draws in which j is among the ``k`` nearest cells of i, float32 (n, n).

    Rows sum to ``k``. If the columns are those of several models side by side, the models take turns: averaged within a
    draw, their independent noise would cancel.
    """
    n = len(mean_nd)
    models = list(zip(*(np.hsplit(part, n_models) for part in (mean_nd, np.sqrt(var_nd), precision_nd)), strict=True))
    indptr = np.arange(0, n * k + 1, k)
    count = sparse.csr_matrix((n, n), dtype=np.float32)
    for draw in steps(range(n_draws), "drawing posteriors"):
        own_mean_nd, sd_nd, own_precision_nd = models[draw % n_models]
        z_nd = own_mean_nd + sd_nd * rng.standard_normal(own_mean_nd.shape)
        index_nk, _ = nearest(z_nd, own_precision_nd, z_nd, np.zeros_like(z_nd), k, int(rng.integers(2**31)))
        count = count + sparse.csr_matrix((np.ones(n * k, np.float32), np.sort(index_nk, 1).ravel(), indptr), (n, n))
    count.data /= n_draws
    return count
