"""Which categorical covariates tell cells apart at all: those whose categories differ more than random groups of cells.

A network that receives a covariate without any effect still fits the chance differences between its categories. That
costs held-out likelihood and changes the latent space. Such a covariate is found here, before the training, so that it
can be left out.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from vxpress.core.data import Counts

# random groupings of the cells, all of which have to differ less than the categories: a test at the level 1 / 20
N_GROUPINGS = 19
# with fewer cells, the test would miss effects; with more, a random choice of them and the most detected genes suffice
MIN_CELLS, MAX_CELLS, MAX_GENES = 100, 4_096, 2_048
MIN_DETECTED = 5


def screened(n: int) -> np.ndarray:
    """Return which of n cells are compared, int64: all, or as many as suffice."""
    if n <= MAX_CELLS:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).permutation(n)[:MAX_CELLS])


def differing(counts: Counts, library_n: np.ndarray, codes_nk: np.ndarray) -> np.ndarray:
    """Return which covariates have categories that differ more than random groups of the same sizes, boolean (k,).

    The difference is the variance of the category means of log-normalised expression, summed over standardised genes.
    It is compared with that of 19 random groupings, so that a covariate without any effect passes with probability 1 / 20.
    With fewer than 100 cells all covariates pass. Covariates with a single category do not.

    Parameters
    ----------
    counts
        Counts of n cells, on the CPU.
    library_n
        Their size factors, above 0, (n,).
    codes_nk
        Their categories, (n, k).
    """
    rows = screened(len(codes_nk))
    passed = np.array([len(np.unique(code_n)) > 1 for code_n in codes_nk.T], dtype=bool)
    if len(rows) < MIN_CELLS or not passed.any():
        return passed
    z_ng = _standardised(counts.take(torch.from_numpy(rows)), library_n[rows])
    for k in np.flatnonzero(passed):
        _, code_n = np.unique(codes_nk[rows, k], return_inverse=True)
        observed = _between(z_ng, code_n)
        # each covariate has its own generator, so that it passes or not whatever the others are
        rng = np.random.default_rng(1)
        passed[k] = all(_between(z_ng, rng.permutation(code_n)) < observed for _ in range(N_GROUPINGS))
    return passed


def _standardised(counts: Counts, library_n: np.ndarray) -> Tensor:
    """Return log-normalised expression with mean 0 and variance 1 of each gene; almost undetected genes are left out."""
    indptr, indices, data = counts.numpy()
    factor_n = (np.median(library_n) / library_n).astype(np.float32)
    level = np.log1p(data * np.repeat(factor_n, np.diff(indptr)))
    x_ng = sparse.csr_matrix((level, indices, indptr), shape=(len(counts), counts.n_genes))
    n_detected_g = x_ng.getnnz(0)
    most = np.sort(np.argsort(-n_detected_g, kind="stable")[:MAX_GENES])
    z_ng = torch.from_numpy(x_ng[:, most[n_detected_g[most] >= MIN_DETECTED]].toarray())
    z_ng -= z_ng.mean(0)
    return z_ng.div_(z_ng.square().mean(0).sqrt_().clamp_min_(1e-6))


def _between(z_ng: Tensor, code_n: np.ndarray) -> float:
    """Compute the sum of squares between groups of cells, over all genes."""
    size_b = torch.from_numpy(np.bincount(code_n))
    sum_bg = z_ng.new_zeros(len(size_b), z_ng.shape[1]).index_add_(0, torch.from_numpy(code_n), z_ng)
    return float((sum_bg.square().sum(1).double() / size_b).sum())
