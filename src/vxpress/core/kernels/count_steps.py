"""Distribution functions of negative binomial and Poisson counts, term by term: most counts are small."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from vxpress.core.kernels.team import CACHED

# sums of more terms, and sums that start at a number too small to hold, are left to the caller
MAX_TERMS, MIN_LOG = 512.0, -700.0


@njit(error_model="numpy", nogil=True, **CACHED)
def count_steps(x, log_mean, log_theta, below, upto):
    """P(below ``x``) and P(at most ``x``) of negative binomial counts, of Poisson ones where ``log_theta`` is infinite.

    All float64 (n,), ``x`` whole numbers.  The results are NaN where a sum of terms is not the way: p(0), and
    p(k + 1) = p(k) (1 + k / theta) s / (k + 1) with s = mean / (1 + mean / theta).
    """
    for i in range(x.size):
        if x[i] < 0.0:
            below[i], upto[i] = 0.0, 0.0
            continue
        mean, inverse = math.exp(log_mean[i]), math.exp(-log_theta[i])
        t = mean * inverse
        log_term = -mean if inverse == 0.0 else -math.log1p(t) / inverse
        # also where a parameter is NaN
        if not (log_term > MIN_LOG and x[i] < MAX_TERMS):
            below[i], upto[i] = np.nan, np.nan
            continue
        term, step, total = math.exp(log_term), mean / (1.0 + t), 0.0
        for k in range(int(x[i])):
            total += term
            term *= (1.0 + k * inverse) * step / (k + 1.0)
        below[i], upto[i] = min(total, 1.0), min(total + term, 1.0)
