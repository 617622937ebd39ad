"""Cosine similarity of the embeddings of perturbations, and how far it would repeat with other cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# penalty of the least squares problem, in cells; that of vxpress.core.training.embeddings
RIDGE = 1.0


@dataclass(frozen=True)
class Similarity:
    """Similarity (p, p) with the ends of its interval, and the reliability (p,) of each embedding."""

    similarity_pp: np.ndarray
    low_pp: np.ndarray
    high_pp: np.ndarray
    reliability_p: np.ndarray


def cosines(a_pd: np.ndarray, b_pd: np.ndarray) -> np.ndarray:
    """Return the cosine of every pair of rows; 0 with a row of zeros."""
    unit_a, unit_b = (
        np.divide(part, size, out=np.zeros_like(part), where=size > 0)
        for part in (a_pd, b_pd)
        for size in [np.linalg.norm(part, axis=1, keepdims=True)]
    )
    return np.asarray(np.clip(unit_a @ unit_b.T, -1.0, 1.0))


def embeddings(z_nd: np.ndarray, strength_np: np.ndarray, weight_n: np.ndarray) -> np.ndarray:
    """Estimate the embeddings, (p, d), from positions with the effects and strengths, by least squares with an intercept."""
    x = np.column_stack((strength_np, np.ones(len(strength_np))))
    weighted = x * weight_n[:, None]
    gram = weighted.T @ x
    gram[np.diag_indices(len(gram) - 1)] += RIDGE
    return np.asarray(np.linalg.lstsq(gram, weighted.T @ z_nd, rcond=None)[0][:-1])


def similarity(
    embedding_pd: np.ndarray,
    z_nd: np.ndarray,
    strength_np: np.ndarray,
    *,
    level: float,
    n_resamples: int,
    rng: np.random.Generator,
) -> Similarity:
    """Compute the similarity of embeddings, with intervals over cells.

    ``z_nd`` are positions with the effects of the perturbations, whose strengths are ``strength_np``. Intervals are those of a
    bootstrap of the cells of each condition, around the similarity of the embeddings. The reliability is the mean cosine
    between the embeddings from two halves of the cells, stepped up to all cells by the formula of Spearman and Brown.
    """
    _, condition_n = np.unique(strength_np, axis=0, return_inverse=True)
    groups = [np.flatnonzero(condition_n.reshape(-1) == c) for c in range(int(condition_n.max()) + 1)]
    found = cosines(embedding_pd, embedding_pd)
    drawn, halves = [], []
    for _ in range(n_resamples):
        weight_n = np.zeros(len(z_nd))
        half_n = np.zeros(len(z_nd), dtype=bool)
        for rows in groups:
            weight_n[rows] = rng.multinomial(len(rows), np.full(len(rows), 1.0 / len(rows)))
            half_n[rng.permutation(rows)[: -(-len(rows) // 2)]] = True
        e_pd = embeddings(z_nd, strength_np, weight_n)
        drawn.append(cosines(e_pd, e_pd))
        first, second = (embeddings(z_nd, strength_np, part.astype(float)) for part in (half_n, ~half_n))
        halves.append(np.diagonal(cosines(first, second)))
    of_halves = np.clip(np.mean(halves, axis=0), 0.0, 1.0)
    tail = (1.0 - level) / 2
    low_pp, high_pp = (np.quantile(drawn, q, axis=0) for q in (tail, 1.0 - tail))
    return Similarity(found, np.minimum(low_pp, found), np.maximum(high_pp, found), 2.0 * of_halves / (1.0 + of_halves))


def clustered_order(similarity_pp: np.ndarray) -> np.ndarray:
    """Return an order of the perturbations in which similar ones are next to each other, by average linkage."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(similarity_pp) < 3:
        return np.arange(len(similarity_pp))
    distance = squareform(np.clip(1.0 - (similarity_pp + similarity_pp.T) / 2, 0.0, 2.0), checks=False)
    return np.asarray(leaves_list(optimal_leaf_ordering(linkage(distance, "average"), distance)), dtype=np.int64)
