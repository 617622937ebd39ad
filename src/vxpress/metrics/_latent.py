"""Metrics of how much of a latent space is used, from posterior means and variances."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from vxpress._entry import entry
from vxpress._seeds import seed_of
from vxpress.core.aggregate import information, log_aggregate


@entry
def kl_per_dimension(
    mean_nd: np.ndarray, var_nd: np.ndarray, prior_mean: np.ndarray | float = 0.0, prior_var: np.ndarray | float = 1.0
) -> np.ndarray:
    """Compute the mean divergence of the posterior from a normal prior, per latent dimension.

    Parameters
    ----------
    mean_nd
        Posterior means, n_cells x n_latent.
    var_nd
        Posterior variances, same shape.
    prior_mean, prior_var
        Mean and variance of the prior, numbers or (n_latent,). The default is N(0, 1).

    Returns
    -------
    Nats per cell, (n_latent,). For N(0, 1) it is the mean of ``(mean^2 + var - log var - 1) / 2`` (Kingma & Welling
    2014, appendix B).

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> vx.metrics.kl_per_dimension(np.array([[0.0, 2.0]]), np.ones((1, 2)))
    array([0., 2.])
    """
    return kl_per_cell(mean_nd, var_nd, prior_mean, prior_var).mean(0)


@entry
def kl_per_cell(
    mean_nd: np.ndarray, var_nd: np.ndarray, prior_mean: np.ndarray | float = 0.0, prior_var: np.ndarray | float = 1.0
) -> np.ndarray:
    """Compute the divergence of each cell's posterior from a normal prior, per latent dimension.

    Parameters
    ----------
    mean_nd
        Posterior means, n_cells x n_latent.
    var_nd
        Posterior variances, same shape.
    prior_mean, prior_var
        Mean and variance of the prior, numbers or (n_latent,). The default is N(0, 1).

    Returns
    -------
    Nats, n_cells x n_latent; the mean over cells is :func:`kl_per_dimension`.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> vx.metrics.kl_per_cell(np.array([[0.0, 2.0], [1.0, 0.0]]), np.ones((2, 2)))
    array([[0. , 2. ],
           [0.5, 0. ]])
    """
    mean_nd, var_nd = _pair(mean_nd, var_nd)
    ratio = var_nd / prior_var
    return np.asarray(0.5 * ((mean_nd - prior_mean) ** 2 / prior_var + ratio - np.log(ratio) - 1.0))


@entry
def active_units(mean_nd: np.ndarray, threshold: float = 0.01) -> np.ndarray:
    """Find the latent dimensions that respond to the data.

    Parameters
    ----------
    mean_nd
        Posterior means, n_cells x n_latent.
    threshold
        A dimension is active if the variance of its posterior mean over cells exceeds this value. 0.01 is the value of
        the source.

    Returns
    -------
    Boolean array (n_latent,): whether the variance over cells of E[z | x] exceeds the threshold (Burda, Grosse &
    Salakhutdinov 2016, section 5).

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> vx.metrics.active_units(np.array([[0.0, 1.0], [0.0, -1.0]]))
    array([False,  True])
    """
    return np.asarray(_matrix(mean_nd, "mean_nd").var(0) > threshold)


@entry
def log_aggregate_posterior(z_md: np.ndarray, mean_nd: np.ndarray, var_nd: np.ndarray) -> np.ndarray:
    """Compute the log density of points under the mean posterior of some cells.

    Parameters
    ----------
    z_md
        Points, m x n_latent.
    mean_nd, var_nd
        Posterior means and variances of the cells, n_cells x n_latent.

    Returns
    -------
    log (1/n) sum_j q(z | x_j) in nats, (m,).

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> vx.metrics.log_aggregate_posterior(np.zeros((1, 1)), np.zeros((3, 1)), np.ones((3, 1))).round(4)
    array([-0.9189])
    """
    mean_nd, var_nd = _pair(mean_nd, var_nd)
    z_md = _matrix(z_md, "z_md")
    if z_md.shape[1] != mean_nd.shape[1]:
        msg = f"z_md has {z_md.shape[1]} columns and the posteriors have {mean_nd.shape[1]}; the same latent dimensions are expected."
        raise ValueError(msg)
    return log_aggregate(z_md, mean_nd, var_nd)


@entry
def mutual_information(
    mean_nd: np.ndarray, var_nd: np.ndarray, *, n_cells: int = 5_000, rng: int | np.random.Generator | None = 0
) -> float:
    """Estimate the mutual information of cells and latent variables, I_q(x; z).

    Parameters
    ----------
    mean_nd, var_nd
        Posterior means and variances, n_cells x n_latent.
    n_cells
        Largest number of cells used. The estimate cannot exceed the log of the number of cells.
    rng
        Seed of the choice of cells and of one draw per cell.

    Returns
    -------
    Nats: the mean of log q(z | x) - log q(z) over one draw per cell, where q(z) is the mean posterior of the cells
    (Hoffman & Johnson 2016). It is at least 0 up to sampling error, and at most the log of the number of cells.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> vx.metrics.mutual_information(np.zeros((100, 2)), np.ones((100, 2)))
    0.0
    """
    mean_nd, var_nd = _pair(mean_nd, var_nd)
    rng = seed_of(rng)
    if len(mean_nd) > n_cells:
        rows = np.sort(rng.choice(len(mean_nd), n_cells, replace=False))
        mean_nd, var_nd = mean_nd[rows], var_nd[rows]
    eps_nd = rng.standard_normal(mean_nd.shape)
    return float(np.round(information(mean_nd, var_nd, eps_nd), 12)) + 0.0


def _pair(mean_nd: np.ndarray, var_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean_nd, var_nd = _matrix(mean_nd, "mean_nd"), _matrix(var_nd, "var_nd")
    if mean_nd.shape != var_nd.shape:
        msg = f"Means and variances must be two n_cells x n_latent arrays of the same shape; found {mean_nd.shape} and {var_nd.shape}."
        raise ValueError(msg)
    if not (var_nd > 0).all():
        msg = "Posterior variances must be positive."
        raise ValueError(msg)
    return mean_nd, var_nd


def _matrix(values: Any, name: str) -> np.ndarray:
    """Return an array, data frame or sparse matrix as a float64 array of two dimensions; all numbers are finite."""
    try:
        matrix = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        msg = f"{name} is a {type(values).__name__} that is not an array of numbers; cells x latent dimensions are expected."
        raise ValueError(msg) from error
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        found = f"found shape {matrix.shape}" if matrix.ndim != 2 else "some are NaN or infinite"
        msg = f"{name} should hold finite numbers, cells x latent dimensions; {found}."
        raise ValueError(msg)
    return matrix
