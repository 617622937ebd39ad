"""The normal posterior, a draw from it and its KL, with their gradients, entry by entry."""

from __future__ import annotations

import numpy as np

from vxpress.core.kernels.frames import Layout, job
from vxpress.core.kernels.vector import exp32

ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)

# cells in groups between two CUTS; PARAMETERS (n, 2 d or more) are the mean m and log variance v, and CODE is what the decoder reads
LATENT = Layout()
CUTS, LARGEST, SMALLEST, D_KL = LATENT.array("i8", 1), *(LATENT.number("f4") for _ in range(3))
PARAMETERS, EPS, SCALE, Z, KL, CODE, D_Z, D_PARAMETERS = (LATENT.array("f4", 2) for _ in range(8))


@job
def posterior(frame, part, thread):
    """Compute z = m + sd eps and the KL from N(0, 1).

    The variance is min(exp(v), exp(LARGEST)) + SMALLEST; its root is written to SCALE.
    """
    out, eps, scale, z, kl = PARAMETERS(frame), EPS(frame), SCALE(frame), Z(frame), KL(frame)
    cuts, largest, smallest, d = CUTS(frame), LARGEST(frame), SMALLEST(frame), EPS(frame).shape[1]
    for n in range(cuts[part], cuts[part + 1]):
        for j in range(d):
            m, v = out[n, j], out[n, d + j]
            variance = exp32(v if v < largest else largest) + smallest
            scale[n, j] = np.sqrt(variance)
            z[n, j] = m + scale[n, j] * eps[n, j]
            kl[n, j] = HALF * (variance + m * m - ONE - np.float32(np.log(variance)))


@job
def posterior_gradient(frame, part, thread):
    """Compute the gradient of PARAMETERS from those of z (n, d) and of every entry of the KL (one number)."""
    out, eps, scale, d_z, d_out = PARAMETERS(frame), EPS(frame), SCALE(frame), D_Z(frame), D_PARAMETERS(frame)
    cuts, largest, smallest, d_kl, d = CUTS(frame), LARGEST(frame), SMALLEST(frame), D_KL(frame), EPS(frame).shape[1]
    for n in range(cuts[part], cuts[part + 1]):
        for j in range(d):
            sd = scale[n, j]
            d_out[n, j] = d_z[n, j] + d_kl * out[n, j]
            d_sd = d_z[n, j] * eps[n, j] + d_kl * (sd - ONE / sd)
            d_out[n, d + j] = d_sd * HALF * (sd * sd - smallest) / sd if out[n, d + j] < largest else ZERO
