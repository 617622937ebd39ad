"""The aggregate posterior, which is the mean of the posteriors of some cells, and the information of z about the cell."""

from __future__ import annotations

import numpy as np

_BLOCK = 512


def log_aggregate(z_md: np.ndarray, mean_nd: np.ndarray, var_nd: np.ndarray) -> np.ndarray:
    """Compute log (1/n) sum_j q(z | x_j) of points, (m,), from posterior means and variances; all float64."""
    precision, scaled = 1.0 / var_nd, mean_nd / var_nd
    # the square of z - mean is expanded, which avoids an array of points x cells x dimensions
    constant = -0.5 * ((mean_nd * scaled).sum(1) + np.log(2 * np.pi * var_nd).sum(1))
    out = np.empty(len(z_md))
    for start in range(0, len(z_md), _BLOCK):
        z = z_md[start : start + _BLOCK]
        log_q = z @ scaled.T - 0.5 * (z**2) @ precision.T + constant
        top = log_q.max(axis=1)
        log_q -= top[:, None]
        out[start : start + _BLOCK] = top + np.log(np.exp(log_q, out=log_q).sum(axis=1)) - np.log(len(mean_nd))
    return out


def information(mean_nd: np.ndarray, var_nd: np.ndarray, eps_nd: np.ndarray) -> float:
    """Estimate I_q(x; z) in nats, E log q(z|x) - E log q(z), with one draw per cell; it is at most log n."""
    z_nd = mean_nd + np.sqrt(var_nd) * eps_nd
    log_q_given_x = -0.5 * (eps_nd**2 + np.log(2 * np.pi * var_nd)).sum(1)
    return float((log_q_given_x - log_aggregate(z_nd, mean_nd, var_nd)).mean())
