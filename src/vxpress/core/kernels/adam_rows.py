"""Adam over one long run of weights, in one pass that also clears the gradient."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from vxpress.core.kernels.team import CACHED

OPTIONS = {"error_model": "numpy", "nogil": True}
ZERO, ONE = np.float32(0.0), np.float32(1.0)
# far below any epsilon; its square is the last normal number, and a processor takes many times longer over those beyond
NOTHING = np.float32(2e-18)


@njit(**OPTIONS)
def _update(p, g, m, v, lr, beta1, beta2, eps, decay, decoupled, rise1, rise2, scale):
    step, keep = lr / rise1, ONE - lr * decay if decoupled else ONE
    penalty = ZERO if decoupled else decay
    for i in range(p.size):
        slope = g[i] * scale + penalty * p[i]
        slope = slope if abs(slope) > NOTHING else ZERO
        first = beta1 * m[i] + (ONE - beta1) * slope
        m[i] = first if abs(first) > NOTHING else ZERO
        second = beta2 * v[i] + (ONE - beta2) * slope * slope
        v[i] = second if second > NOTHING * NOTHING else ZERO
        p[i] = p[i] * keep - step * m[i] / (np.sqrt(v[i]) / rise2 + eps)
        g[i] = ZERO


@njit(**OPTIONS, **CACHED)
def update_serial(cuts, p, g, m, v, settings, decoupled):
    """:func:`update` on the calling thread."""
    lr, beta1, beta2, eps, decay, rise1, rise2, scale = settings
    for i in range(cuts.size - 1):
        at = slice(cuts[i], cuts[i + 1])
        _update(p[at], g[at], m[at], v[at], lr, beta1, beta2, eps, decay, decoupled, rise1, rise2, scale)


@njit(parallel=True, **OPTIONS, **CACHED)
def update(cuts, p, g, m, v, settings, decoupled):
    """One step of Adam (Kingma & Ba 2015), or AdamW where ``decoupled``; the gradient is scaled first and zero after.

    ``settings``: learning rate, both decays of the moments, epsilon, weight decay, 1 - beta1^t, sqrt(1 - beta2^t) and
    the factor of the gradient.
    """
    lr, beta1, beta2, eps, decay, rise1, rise2, scale = settings
    for i in prange(cuts.size - 1):
        at = slice(cuts[i], cuts[i + 1])
        _update(p[at], g[at], m[at], v[at], lr, beta1, beta2, eps, decay, decoupled, rise1, rise2, scale)
