"""Simulated control and treated cells, with the true response of every group."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import LIBRARY_SIZE
from vxpress._seeds import seed_of
from vxpress.datasets._simulate import _counts, simulate


@entry
def simulate_perturbation(
    n_obs: int = 1500,
    n_vars: int = 300,
    *,
    n_groups: int = 4,
    library_mean: float = 1000.0,
    response_fraction: float = 0.2,
    response_log_fold_change: float = 1.5,
    specific: float = 0.2,
    rng: int | np.random.Generator | None = 0,
) -> AnnData:
    r"""Simulate groups of cells of which half are treated, with a response that groups share in part.

    Cells are those of :func:`simulate`. In treated cells, the shares of some genes are multiplied by
    :math:`2^{r_{gk}}`, with the response :math:`r` of gene :math:`g` in group :math:`k`, and scaled to sum to one again.

    Parameters
    ----------
    n_obs, n_vars, n_groups, library_mean
        As in :func:`simulate`.
    response_fraction
        Fraction of the genes that respond.
    response_log_fold_change
        Standard deviation of their log2 fold changes.
    specific
        Fraction of the variance of the response that each group has to itself, from 0 (all groups respond alike) to 1
        (what one group does says nothing about another).
    rng
        Seed or generator; the same seed gives the same data.

    Returns
    -------
    Annotated matrix as from :func:`simulate`, with these further fields:

    `adata.obs['condition']` : :class:`pandas.Series` (dtype `category`)
        ``"control"`` or ``"treated"``.
    `adata.varm['response_true']` : :class:`numpy.ndarray` (`n_vars` x `n_groups`)
        The response :math:`r`. Columns follow the categories of `adata.obs['group']`.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.simulate_perturbation(200, 50)
    >>> adata.obs["condition"].value_counts().tolist()
    [100, 100]
    """
    check_range("response_fraction", response_fraction, 0.0, 1.0)
    check_range("response_log_fold_change", response_log_fold_change, 0.0, 10.0)
    check_range("specific", specific, 0.0, 1.0)
    generator = seed_of(rng)
    adata = simulate(
        n_obs, n_vars, n_groups=n_groups, library_mean=library_mean, keep_truth=True, rng=generator.spawn(1)[0]
    )
    responds = np.zeros(n_vars, dtype=bool)
    responds[generator.permutation(n_vars)[: round(response_fraction * n_vars)]] = True
    common_g, own_gk = generator.normal(size=n_vars), generator.normal(size=(n_vars, n_groups))
    response_gk = np.sqrt(1.0 - specific) * common_g[:, None] + np.sqrt(specific) * own_gk
    response_gk *= response_log_fold_change * responds[:, None]

    group_n = adata.obs["group"].cat.codes.to_numpy()
    treated_n = np.zeros(n_obs, dtype=bool)
    for group in range(n_groups):
        rows = generator.permutation(np.flatnonzero(group_n == group))
        treated_n[rows[: (len(rows) + group % 2) // 2]] = True
    rows = np.flatnonzero(treated_n)
    rho_ng = adata.layers["rho_true"][rows].astype(np.float64) * np.exp2(response_gk.T[group_n[rows]])
    rho_ng /= rho_ng.sum(1, keepdims=True)
    library_n = adata.obs["library_size_true"].to_numpy()[rows]
    counts = sparse.lil_matrix(adata.X)
    counts[rows] = _counts(library_n[:, None] * rho_ng, adata.var["dispersion_true"].to_numpy(), generator)
    adata.X = sparse.csr_matrix(counts, dtype=np.float32)
    adata.layers["rho_true"][rows] = rho_ng
    adata.obs[LIBRARY_SIZE] = adata.X @ np.ones(n_vars)
    adata.obs["condition"] = pd.Categorical(np.where(treated_n, "treated", "control"))
    adata.varm["response_true"] = response_gk
    return adata
