"""Adam over one long array of weights, in one pass that also clears the gradient."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from vxpress.core.kernels.team import CACHED

OPTIONS = {"error_model": "numpy", "nogil": True}
ZERO, ONE = np.float32(0.0), np.float32(1.0)
# far below any epsilon, and its square is still a normal float32: arithmetic on subnormal numbers is many times slower
TINY = np.float32(2e-18)


@njit(**OPTIONS)
def _update(p, g, m, v, lr, beta1, beta2, eps, decay, decoupled, rise1, rise2, scale):
    step, keep = lr / rise1, ONE - lr * decay if decoupled else ONE
    penalty = ZERO if decoupled else decay
    for i in range(p.size):
        slope = g[i] * scale + penalty * p[i]
        slope = slope if abs(slope) > TINY else ZERO
        first = beta1 * m[i] + (ONE - beta1) * slope
        m[i] = first if abs(first) > TINY else ZERO
        second = beta2 * v[i] + (ONE - beta2) * slope * slope
        v[i] = second if second > TINY * TINY else ZERO
        p[i] = p[i] * keep - step * m[i] / (np.sqrt(v[i]) / rise2 + eps)
        g[i] = ZERO


@njit(fastmath={"reassoc", "contract"}, **OPTIONS)
def _square_sum(g):
    total = ZERO
    for i in range(g.size):
        total += g[i] * g[i]
    return total


@njit(**OPTIONS)
def _square_sums(cuts, i, g):
    """Sum the squares in part i of each tensor over all tensors."""
    total = 0.0
    for k in range(cuts.shape[1]):
        total += _square_sum(g[cuts[i, k] : cuts[i + 1, k]])
    return total


@njit(**OPTIONS, **CACHED)
def square_sums_serial(cuts, g, out):
    """:func:`square_sums` on the calling thread."""
    for i in range(cuts.shape[0] - 1):
        out[i] = _square_sums(cuts, i, g)


@njit(parallel=True, **OPTIONS, **CACHED)
def square_sums(cuts, g, out):
    """Compute sums of squares of the gradient, one per thread; see :func:`update` for ``cuts``."""
    for i in prange(cuts.shape[0] - 1):
        out[i] = _square_sums(cuts, i, g)


@njit(**OPTIONS)
def _update_run(cuts, i, p, g, m, v, settings, decoupled):
    lr, beta1, beta2, eps, decay, rise1, rise2, scale = settings
    for k in range(cuts.shape[1]):
        at = slice(cuts[i, k], cuts[i + 1, k])
        _update(p[at], g[at], m[at], v[at], lr, beta1, beta2, eps, decay, decoupled, rise1, rise2, scale)


@njit(**OPTIONS, **CACHED)
def update_serial(cuts, p, g, m, v, settings, decoupled):
    """:func:`update` on the calling thread."""
    for i in range(cuts.shape[0] - 1):
        _update_run(cuts, i, p, g, m, v, settings, decoupled)


@njit(parallel=True, **OPTIONS, **CACHED)
def update(cuts, p, g, m, v, settings, decoupled):
    """Take one step of Adam (Kingma & Ba 2015), or AdamW if ``decoupled``; scale the gradient first, then clear it.

    Thread i updates ``cuts[i, k]`` to ``cuts[i + 1, k]`` of every tensor k. It wrote the gradient of this part, so the
    memory need not move between the caches of cores.  ``settings`` are the learning rate, both decays of the moments,
    epsilon, weight decay, 1 - beta1^t, sqrt(1 - beta2^t) and the factor of the gradient.
    """
    for i in prange(cuts.shape[0] - 1):
        _update_run(cuts, i, p, g, m, v, settings, decoupled)
