"""The divergence of the aggregate posterior from the prior."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from vxpress._entry import entry
from vxpress._seeds import seed_of
from vxpress.metrics._latent import _pair

# largest number of cells for the fit of the mixture, and of held-out cells; draws of each held-out cell
MAX_TRAIN, MAX_JUDGED, N_DRAWS = 2_000, 1_000, 5
# candidate mixtures; with more than FULL_UP_TO dimensions, a full covariance has too many entries for the number of
# cells
FULL = (("full", 1), ("full", 8), ("diag", 24))
WIDE = (("diag", 1), ("diag", 8), ("diag", 24))
FULL_UP_TO = 32


@entry
def prior_gap(
    mean_nd: np.ndarray,
    var_nd: np.ndarray,
    held_out_n: np.ndarray | None = None,
    *,
    log_prior: Callable[[np.ndarray], np.ndarray] | None = None,
    rng: int | np.random.Generator | None = 0,
) -> tuple[float, float]:
    """Estimate the divergence of the aggregate posterior from the prior, KL(q(z) || p(z)), on held-out cells.

    A mixture of normal distributions is fitted to one draw of z per training cell; its size is chosen on a fifth of
    them. The estimate is the mean of log q(z) - log p(z) over held-out cells, with five draws each. An imperfect
    mixture gives a smaller value in expectation, so the estimate errs on the low side and may be negative.

    Parameters
    ----------
    mean_nd, var_nd
        Posterior means and variances, n_cells x n_latent.
    held_out_n
        Boolean, (n_cells,): the held-out cells; by default a random half.
    log_prior
        Log density of points (m, n_latent) under the prior, (m,); by default that of N(0, I).
    rng
        Seed of the draws and of the split, or a numpy generator.

    Returns
    -------
    The estimate in nats per cell, summed over dimensions, and its lower 95 % bound from the spread over held-out cells.
    Both are NaN if fewer than two training cells remain.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> rng = np.random.default_rng(0)
    >>> mean_nd = rng.normal(2.0, 0.8, (1000, 1))  # with variance 0.36: z ~ N(2, 1), which is 2 nats from N(0, 1)
    >>> gap, low = vx.metrics.prior_gap(mean_nd, np.full((1000, 1), 0.36))
    >>> low < gap, round(gap)
    (True, 2)
    """
    # takes a tenth of a second, and most calls of the package do not need it
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mean_nd, var_nd = _pair(mean_nd, var_nd)
    n, d = mean_nd.shape
    rng = seed_of(rng)
    judged = np.zeros(n, dtype=bool) if held_out_n is None else np.asarray(held_out_n, dtype=bool)
    if judged.all() or not judged.any():
        judged = np.isin(np.arange(n), rng.permutation(n)[: max(1, n // 2)])
    train, held = np.flatnonzero(~judged), np.flatnonzero(judged)
    if len(train) < 2:
        return float("nan"), float("nan")
    train, held = rng.permutation(train)[:MAX_TRAIN], rng.permutation(held)[:MAX_JUDGED]
    seed = int(rng.integers(2**31))

    def draw(rows: np.ndarray) -> np.ndarray:
        return np.asarray(mean_nd[rows] + np.sqrt(var_nd[rows]) * rng.standard_normal((len(rows), d)))

    z_md = draw(train)
    cut = max(1, len(z_md) // 5)
    best, mixture = -np.inf, None
    for covariance, size in FULL if d <= FULL_UP_TO else WIDE:
        # at least ten cells per component
        if size > 1 and len(z_md) - cut < 10 * size:
            continue
        tried = GaussianMixture(size, covariance_type=covariance, reg_covar=1e-3, max_iter=50, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            tried.fit(z_md[cut:] if len(z_md) > cut + 1 else z_md)
        score = tried.score(z_md[:cut])
        if mixture is None or score > best:
            best, mixture = score, tried
    assert mixture is not None  # noqa: S101 - one component is always tried
    ratio_n = np.zeros(len(held))
    for _ in range(N_DRAWS):
        at = draw(held)
        log_p = -0.5 * (at**2 + np.log(2 * np.pi)).sum(1) if log_prior is None else np.asarray(log_prior(at))
        ratio_n += (mixture.score_samples(at) - log_p) / N_DRAWS
    gap = float(ratio_n.mean())
    if len(held) < 2:
        return gap, -np.inf
    return gap, float(gap - 1.96 * ratio_n.std(ddof=1) / np.sqrt(len(held)))
