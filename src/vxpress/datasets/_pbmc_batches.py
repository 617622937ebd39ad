"""Simulated cells in batches, from estimates on real blood cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from vxpress._entry import entry
from vxpress._keys import LIBRARY_SIZE
from vxpress._seeds import seed_of
from vxpress.datasets._pbmc68k_reduced import pbmc68k_reduced
from vxpress.datasets._simulate import whole_number

LABELS = "bulk_labels"
# types with fewer real cells, and genes with fewer molecules in them, are left out: their means are too uncertain
MIN_CELLS, MIN_MOLECULES = 20, 20
# pseudo-molecules, distributed as those of all cells, that are added to the counts of a type
PRIOR_MOLECULES = 2_000.0
# sd over genes of the natural log of a batch's factors, its depth, and how unevenly types are spread over batches
BATCH_SD = 0.25
DEPTHS = (1.0, 0.6, 1.5)
CONCENTRATION = 3.0
LOWEST_THETA, HIGHEST_THETA = 0.3, 100.0

Floats = NDArray[np.float64]


@entry
def pbmc_batches(n_obs: int = 2000, *, rng: int | np.random.Generator | None = 0) -> AnnData:
    r"""Simulate blood cells in three batches, from estimates on real cells.

    The composition of each cell type, the dispersion of each gene and the spread of molecules per cell are estimated
    from the 700 real cells of :func:`pbmc68k_reduced`. Counts are then drawn as

    .. math::

        x_{ng} \sim \mathrm{NB}(\mathrm{mean} = l_n \rho_{c(n) g} f_{b(n) g},\;
        \mathrm{var} = \mathrm{mean} + \mathrm{mean}^2 / \theta_g),

    with a simulated batch effect: each batch multiplies every gene by its own factor (log-normal, standard deviation of
    the log 0.25), has its own depth (1, 0.6 and 1.5 times that of the real cells) and its own shares of the cell types.
    Cells of one type do not differ in any other way, so the labels are true, unlike those of real cells.

    Parameters
    ----------
    n_obs
        Number of cells.
    rng
        Seed or generator; the same seed gives the same data.

    Returns
    -------
    Annotated matrix, ``n_obs`` x 728 (genes with at least 20 molecules in the real cells), with the following fields:

    `adata.X` : :class:`scipy.sparse.csr_matrix` (dtype `float32`)
        Counts.
    `adata.obs['batch']`, `adata.obs['cell_type']` : :class:`pandas.Series` (dtype `category`)
        Batch and true cell type: the types of ``bulk_labels`` with at least 20 real cells.
    `adata.obs['library_size']` : :class:`pandas.Series` (dtype `float64`)
        Molecules counted in the cell.

    Raises
    ------
    ValueError
        If ``n_obs`` is not a whole number of at least 1.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc_batches(600)
    >>> adata.shape
    (600, 728)
    >>> adata.obs["batch"].cat.categories.tolist()
    ['batch_0', 'batch_1', 'batch_2']
    """
    n_obs = whole_number("n_obs", n_obs)
    rng = seed_of(rng)
    real = pbmc68k_reduced()
    real = real[real.obs.groupby(LABELS, observed=True)[LABELS].transform("size") >= MIN_CELLS]
    real = real[:, np.asarray(real.X.sum(axis=0)).ravel() >= MIN_MOLECULES]
    labels = pd.Categorical(real.obs[LABELS]).remove_unused_categories()
    counts = real.X.toarray().astype(np.float64)
    type_n = np.asarray(labels.codes, dtype=np.int64)
    rho_cg = _composition(counts, type_n)
    theta_g = _dispersion(counts, rho_cg[type_n] * counts.sum(1, keepdims=True))

    n_batches, shares_c = len(DEPTHS), np.bincount(type_n) / len(type_n)
    factor_bg = np.exp(rng.normal(0.0, BATCH_SD, (n_batches, rho_cg.shape[1])))
    shares_bc = rng.dirichlet(CONCENTRATION * len(shares_c) * shares_c, size=n_batches)
    batch_n = rng.permutation(np.arange(n_obs) % n_batches)
    drawn_n = np.array([rng.choice(len(shares_c), p=shares_bc[b]) for b in batch_n], dtype=np.int64)
    # depths are those of real cells of the type
    depth_n = np.array([rng.choice(counts.sum(1)[type_n == c]) for c in drawn_n]) * np.array(DEPTHS)[batch_n]
    mean_ng = rho_cg[drawn_n] * factor_bg[batch_n]
    mean_ng *= (depth_n / mean_ng.sum(1))[:, None]
    x = sparse.csr_matrix(
        rng.poisson(rng.standard_gamma(theta_g, mean_ng.shape) * (mean_ng / theta_g)).astype(np.float32)
    )
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical.from_codes(batch_n, [f"batch_{b}" for b in range(n_batches)]),
            "cell_type": pd.Categorical.from_codes(drawn_n, labels.categories),
            LIBRARY_SIZE: x @ np.ones(x.shape[1]),
        },
        index=pd.Index([f"cell_{i}" for i in range(n_obs)]),
    )
    return AnnData(x, obs=obs, var=real.var[[]].copy())


def _composition(counts: Floats, type_n: NDArray[np.int64]) -> Floats:
    """Compute the share of each gene in each type, (c, g), shrunken slightly towards that of all cells."""
    overall_g = counts.sum(0) / counts.sum()
    sums_cg = np.stack([counts[type_n == c].sum(0) for c in range(type_n.max() + 1)]) + PRIOR_MOLECULES * overall_g
    return np.asarray(sums_cg / sums_cg.sum(1, keepdims=True))


def _dispersion(counts: Floats, mean_ng: Floats) -> Floats:
    """Estimate the inverse overdispersion of each gene by moments, from the excess of squared residuals over means."""
    excess_g = (np.square(counts - mean_ng) - mean_ng).sum(0)
    return np.clip(np.square(mean_ng).sum(0) / np.maximum(excess_g, 1e-12), LOWEST_THETA, HIGHEST_THETA)
