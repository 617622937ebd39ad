"""How likely a cell has none of the known labels: labelled cells are far from it, while other cells are near.

Two signs are combined, both relative to the cells that are judged together. One is the distance to the nearest label, a normal
distribution in the latent space, less that to all cells ("relative Mahalanobis distance", Ren et al. 2021). The other is the
share of labelled cells among its neighbours. A type that is absent from the reference forms a group of its own without labels,
wherever it lies, also between known types. The more cells are judged together, the better both signs are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

N_NEIGHBORS = 30
# the covariance of a label is mixed with that of all labels as if it had this many more cells
SHRINKAGE = 200.0
RIDGE = 1e-3
# least spread that counts as one unit: a step of the share of 30 neighbors
LEAST_SPREAD = 1.0 / 30.0
CHUNK = 512
# most cells to be judged among which neighbors are searched, next to the labelled ones
MAX_CONTEXT = 20_000
# fewest labelled cells by which others with the same most probable label are measured
MIN_UNITS = 10
# fewest cells of a batch without labels whose scores are compared with one another
MIN_BATCH = 50


@dataclass(frozen=True)
class Labelled:
    """Labelled cells of a fit: latent positions (m, d), codes of label and batch, folds in which they were held out.

    ``best_m`` are the labels that they were then predicted to have.
    """

    z_md: np.ndarray
    code_m: np.ndarray
    fold_m: np.ndarray
    batch_m: np.ndarray
    best_m: np.ndarray


def novelty(z_nd: np.ndarray, best_n: np.ndarray, known: Labelled) -> tuple[np.ndarray, np.ndarray]:
    """Score cells to be judged, and the labelled cells as if they were among these; higher is more unusual, (n,) and (m,).

    A labelled cell is judged by the others: its distance by the labelled cells of the other folds. Both signs are in units of
    their spread over labelled cells. The share of labelled neighbors is compared within the most probable label, ``best_n``
    (n,): a label that is more common among the cells to be judged than among the labelled ones is no novelty.
    """
    together = np.concatenate([z_nd, known.z_md]).astype(np.float64)
    background = Normals.of(together, np.zeros(len(together), dtype=np.int64))
    z_nd, z_md = together[: len(z_nd)], together[len(z_nd) :]
    far_n = Normals.of(z_md, known.code_m).distance(z_nd) - background.distance(z_nd)
    far_m = np.empty(len(z_md))
    for fold in np.unique(known.fold_m):
        held = known.fold_m == fold
        if held.all():
            far_m[held] = Normals.of(z_md, known.code_m).distance(z_md)
        else:
            far_m[held] = Normals.of(z_md[~held], known.code_m[~held]).distance(z_md[held])
    far_m -= background.distance(z_md)
    # enough cells to show where cells without a label are dense
    step = -(-len(z_nd) // MAX_CONTEXT)
    among = np.concatenate([np.arange(0, len(z_nd), max(1, step)), np.arange(len(z_nd), len(together))])
    few = 1.0 - _share_among_neighbors(together, among, among >= len(z_nd))
    few_n, few_m = few[: len(z_nd)], few[len(z_nd) :]
    few_n, few_m = _centred(few_n, best_n, few_m, known.best_m)
    score_n, score_m = (_units(far, by=far_m) + _units(few, by=few_m) for far, few in ((far_n, few_n), (far_m, few_m)))
    return score_n, score_m


def _centred(
    value_n: np.ndarray, best_n: np.ndarray, value_m: np.ndarray, best_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return values less the median of labelled cells with the same most probable label, if these are enough, or of all."""
    out_n, out_m = value_n - np.median(value_m), value_m - np.median(value_m)
    for label in np.unique(best_m):
        own_n, own_m = best_n == label, best_m == label
        if own_m.sum() >= MIN_UNITS:
            middle = np.median(value_m[own_m])
            out_n[own_n], out_m[own_m] = value_n[own_n] - middle, value_m[own_m] - middle
    return out_n, out_m


def as_in_labelled(score_n: np.ndarray, batch_n: np.ndarray, score_m: np.ndarray, batch_m: np.ndarray) -> np.ndarray:
    """Return scores in which cells of batches without labels have the lower half of the distribution of labelled cells.

    All cells of such a batch may look unusual to labelled cells, which come from other batches. Most of them are taken to have
    a known label: the median and the distance from it to the lower quartile become those of the labelled cells.
    """
    out = score_n.copy()
    low, middle = np.quantile(score_m, [0.25, 0.5])
    for code in np.setdiff1d(batch_n, batch_m):
        rows = batch_n == code
        if rows.sum() >= MIN_BATCH:
            own_low, own_middle = np.quantile(score_n[rows], [0.25, 0.5])
            scale = (middle - low) / max(own_middle - own_low, 1e-12)
            # never stretched: few kinds of cells have scores that differ little
            out[rows] = middle + (score_n[rows] - own_middle) * min(scale, 1.0)
    return out


@dataclass(frozen=True)
class Normals:
    """A normal distribution for each label: means (labels, d), and inverse Cholesky factors of the covariances."""

    mean_cd: np.ndarray
    whiten_cdd: np.ndarray

    @classmethod
    def of(cls, z_md: np.ndarray, code_m: np.ndarray) -> Normals:
        """Estimate them from labelled cells, with covariances shrunk to the one that all labels have in common."""
        codes, code_m, size_c = np.unique(code_m, return_inverse=True, return_counts=True)
        mean_cd = np.stack([z_md[code_m == c].mean(0) for c in range(len(codes))])
        residual_md = z_md - mean_cd[code_m]
        # a dimension that all cells share has no spread
        ridge = RIDGE * max(float(z_md.var(0).mean()), 1e-12) * np.eye(z_md.shape[1])
        pooled = residual_md.T @ residual_md / len(z_md) + ridge
        factors = []
        for c in range(len(codes)):
            own = residual_md[code_m == c]
            covariance = (own.T @ own + SHRINKAGE * pooled) / (size_c[c] + SHRINKAGE) + ridge
            factors.append(np.linalg.inv(np.linalg.cholesky(covariance)))
        return cls(mean_cd, np.stack(factors))

    def distance(self, z_nd: np.ndarray) -> np.ndarray:
        """Compute -2 log density under the nearest distribution, up to a constant, (n,)."""
        return self._each(z_nd).min(0)

    def nearest(self, z_nd: np.ndarray) -> np.ndarray:
        """Return the position of the distribution with the highest density, int64 (n,)."""
        return self._each(z_nd).argmin(0)

    def _each(self, z_nd: np.ndarray) -> np.ndarray:
        """Compute -2 log density under each distribution, up to a constant, (labels, n)."""
        out = np.empty((len(self.mean_cd), len(z_nd)))
        for c, (mean_d, whiten_dd) in enumerate(zip(self.mean_cd, self.whiten_cdd, strict=True)):
            out[c] = np.square((z_nd - mean_d) @ whiten_dd.T).sum(1) - 2.0 * np.log(np.diag(whiten_dd)).sum()
        return out


def _share_among_neighbors(z_nd: np.ndarray, among_k: np.ndarray, labelled_k: np.ndarray) -> np.ndarray:
    """Return the share of labelled cells among the nearest other cells of each cell; only the rows ``among_k`` are neighbors."""
    z, among, labelled = (
        torch.from_numpy(z_nd.astype(np.float32)),
        torch.from_numpy(among_k),
        torch.from_numpy(labelled_k),
    )
    k = min(N_NEIGHBORS, len(among) - 1)
    out = np.empty(len(z))
    for start in range(0, len(z), CHUNK):
        part = slice(start, start + CHUNK)
        distance = torch.cdist(z[part], z[among])
        distance[torch.arange(start, start + len(distance))[:, None] == among] = torch.inf
        out[part] = labelled[distance.topk(k, dim=-1, largest=False).indices].double().mean(-1).numpy()
    return out


def _units(value_n: np.ndarray, *, by: np.ndarray) -> np.ndarray:
    """Return values in units of their spread over labelled cells, without letting a few extremes dominate."""
    low, middle, high = np.quantile(by, [0.25, 0.5, 0.75])
    return np.asarray(np.arcsinh((value_n - middle) / max(high - low, LEAST_SPREAD)))
