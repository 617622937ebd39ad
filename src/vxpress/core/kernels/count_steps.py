"""Distribution functions of negative binomial and Poisson counts, summed term by term, since most counts are small."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from vxpress.core.kernels.team import CACHED

# sums with more terms, and sums whose first term underflows, are left to the caller
MAX_TERMS, MIN_LOG = 512.0, -700.0


@njit(error_model="numpy", nogil=True, **CACHED)
def count_steps(x, log_mean, log_theta, below, upto):
    """Compute P(X < ``x``) and P(X <= ``x``) of negative binomial counts (Poisson where ``log_theta`` is infinite).

    All arrays are float64 (n,), and ``x`` are whole numbers. The terms are p(0) and
    p(k + 1) = p(k) (1 + k / theta) s / (k + 1) with s = mean / (1 + mean / theta). Results are NaN where such a sum is
    not suitable: too many terms, or a first term that underflows.
    """
    for i in range(x.size):
        if x[i] < 0.0:
            below[i], upto[i] = 0.0, 0.0
            continue
        mean, inverse = math.exp(log_mean[i]), math.exp(-log_theta[i])
        t = mean * inverse
        log_term = -mean if inverse == 0.0 else -math.log1p(t) / inverse
        # also true if a parameter is NaN
        if not (log_term > MIN_LOG and x[i] < MAX_TERMS):
            below[i], upto[i] = np.nan, np.nan
            continue
        term, step, total = math.exp(log_term), mean / (1.0 + t), 0.0
        for k in range(int(x[i])):
            total += term
            term *= (1.0 + k * inverse) * step / (k + 1.0)
        below[i], upto[i] = min(total, 1.0), min(total + term, 1.0)
