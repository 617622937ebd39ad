"""The normal posterior, a draw from it and its KL, with their gradients, entry by entry."""

from __future__ import annotations

import numpy as np
from numba import njit

from vxpress.core.kernels.team import CACHED
from vxpress.core.kernels.vector import exp32

OPTIONS = {"error_model": "numpy", "nogil": True, **CACHED}
ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)


@njit(**OPTIONS)
def posterior(out, largest, smallest, eps, scale, z, kl):
    """Compute z = m + sd eps and the KL from N(0, 1); ``out`` (n, 2 d) holds m and the log variance v.

    The variance is min(exp(v), exp(largest)) + smallest; its root is written to ``scale``.
    """
    d = eps.shape[1]
    for n in range(out.shape[0]):
        for j in range(d):
            m, v = out[n, j], out[n, d + j]
            variance = exp32(v if v < largest else largest) + smallest
            scale[n, j] = np.sqrt(variance)
            z[n, j] = m + scale[n, j] * eps[n, j]
            kl[n, j] = HALF * (variance + m * m - ONE - np.float32(np.log(variance)))


@njit(**OPTIONS)
def posterior_gradient(d_z, d_kl, out, largest, smallest, eps, scale, d_out):
    """Compute the gradient with respect to ``out`` from those of z (n, d) and of every entry of the KL (one number)."""
    d = eps.shape[1]
    for n in range(out.shape[0]):
        for j in range(d):
            sd = scale[n, j]
            d_out[n, j] = d_z[n, j] + d_kl * out[n, j]
            d_sd = d_z[n, j] * eps[n, j] + d_kl * (sd - ONE / sd)
            d_out[n, d + j] = d_sd * HALF * (sd * sd - smallest) / sd if out[n, d + j] < largest else ZERO
