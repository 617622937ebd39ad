"""Adam over one long array of weights, in one pass that also clears the gradient."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from vxpress.core.kernels.parts import finish, meet, take
from vxpress.core.kernels.team import CACHED, INNER
from vxpress.core.kernels.vector import fill

# rounds of parts
ROUNDS = 3
ZERO, ONE = np.float32(0.0), np.float32(1.0)
# far below any epsilon, and its square is still a normal float32: arithmetic on subnormal numbers is many times slower
TINY = np.float32(2e-18)


@njit(**INNER)
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


@njit(fastmath={"reassoc", "contract"}, **INNER)
def _square_sum(g):
    total = ZERO
    for i in range(g.size):
        total += g[i] * g[i]
    return total


@njit(**INNER)
def _judge(squares, loss, max_norm, verdict):
    """Write whether the step is void, because loss or gradient is not finite, and the factor of the gradient."""
    total = 0.0
    for i in range(squares.size):
        total += squares[i]
    norm = math.sqrt(total)
    verdict[0] = 0.0 if math.isfinite(norm + loss) else 1.0
    verdict[1] = max_norm / (norm + 1e-6) if max_norm > 0.0 and norm + 1e-6 > max_norm else 1.0


@njit(error_model="numpy", nogil=True, **CACHED)
def adam(board, cuts, part, n_tensors, p, g, m, v, settings, decoupled, loss, max_norm, squares, verdict):
    """Take one step of Adam (Kingma & Ba 2015), or AdamW if ``decoupled``, and clear the gradient; see :mod:`.parts`.

    The weights consist of tensors, each of which is divided into as many runs: run i of tensor k is from ``cuts[i, k]`` to
    ``cuts[i + 1, k]``. The first ``n_tensors`` are updated; ``part[k]`` is the row of ``settings`` for tensor k: learning rate, both
    decays of the moments, epsilon, weight decay, 1 - beta1^t and sqrt(1 - beta2^t). The norm of the gradient is clipped at
    ``max_norm``, if that is above 0. ``verdict`` receives whether the step was void, and the factor of the gradient.
    """
    n_runs = len(cuts) - 1
    i = take(board, 0)
    while i < n_runs:
        squares[i] = 0.0
        for k in range(n_tensors):
            squares[i] += _square_sum(g[cuts[i, k] : cuts[i + 1, k]])
        finish(board, 0)
        i = take(board, 0)
    meet(board, 0, n_runs)
    if take(board, 1) == 0:
        _judge(squares, loss, max_norm, verdict)
        finish(board, 1)
    meet(board, 1, 1)
    scale = np.float32(verdict[1])
    i = take(board, 2)
    while i < n_runs:
        for k in range(cuts.shape[1]):
            at = slice(cuts[i, k], cuts[i + 1, k])
            if k >= n_tensors or verdict[0] > 0.0:
                fill(g[at], ZERO)
                continue
            c = settings[part[k]]
            _update(p[at], g[at], m[at], v[at], c[0], c[1], c[2], c[3], c[4], decoupled, c[5], c[6], scale)
        finish(board, 2)
        i = take(board, 2)
    meet(board, 2, n_runs)
