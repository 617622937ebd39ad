"""Adam over one long array of weights, in one pass that also clears the gradient."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from vxpress.core.kernels.frames import Layout, job
from vxpress.core.kernels.team import INNER
from vxpress.core.kernels.vector import fill

# weights, gradient and moments; they consist of tensors, each of which is divided into as many runs: run i of tensor k is from
# CUTS[i, k] to CUTS[i + 1, k]. The first N_TENSORS are updated.
WEIGHTS = Layout()
P, G, M, V, CUTS, N_TENSORS = *(WEIGHTS.array("f4", 1) for _ in range(4)), WEIGHTS.array("i8", 2), WEIGHTS.number("i8")
# PART[k] is the row of SETTINGS for tensor k: learning rate, both decays of the moments, epsilon, weight decay, 1 - beta1^t and
# sqrt(1 - beta2^t). The norm of the gradient is clipped at MAX_NORM, if that is above 0. LOSS has one entry.
PART, SETTINGS, DECOUPLED = WEIGHTS.array("i8", 1), WEIGHTS.array("f4", 2), WEIGHTS.number("i8")
LOSS, MAX_NORM = WEIGHTS.array("f8", 1), WEIGHTS.number("f8")
# sums of squares of the runs, and whether the step was void (one entry)
SQUARES, VOID = WEIGHTS.array("f8", 1), WEIGHTS.array("f8", 1)
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


@job
def square(frame, part, thread):
    """Add up the squares of the gradient in a run of every tensor."""
    g, cuts, squares = G(frame), CUTS(frame), SQUARES(frame)
    squares[part] = 0.0
    for k in range(N_TENSORS(frame)):
        squares[part] += _square_sum(g[cuts[part, k] : cuts[part + 1, k]])


@njit(**INNER)
def judged(squares, loss, max_norm):
    """Compute whether the step is void, because loss or gradient is not finite, and the factor of the gradient."""
    total = 0.0
    for i in range(squares.size):
        total += squares[i]
    norm = math.sqrt(total)
    void = not math.isfinite(norm + loss)
    return void, max_norm / (norm + 1e-6) if max_norm > 0.0 and norm + 1e-6 > max_norm else 1.0


@job
def update(frame, part, thread):
    """Take one step of Adam (Kingma & Ba 2015), or AdamW if DECOUPLED, for a run of every tensor, and clear the gradient.

    Every part judges the step by itself, so that the threads need not meet for it.
    """
    p, g, m, v, cuts, settings = P(frame), G(frame), M(frame), V(frame), CUTS(frame), SETTINGS(frame)
    void, factor = judged(SQUARES(frame), LOSS(frame)[0], MAX_NORM(frame))
    if part == 0:
        VOID(frame)[0] = 1.0 if void else 0.0
    scale = np.float32(factor)
    for k in range(cuts.shape[1]):
        first, last = cuts[part, k], cuts[part + 1, k]
        if k >= N_TENSORS(frame) or void:
            fill(g[first:last], ZERO)
            continue
        c = settings[PART(frame)[k]]
        _update(
            p[first:last], g[first:last], m[first:last], v[first:last],
            c[0], c[1], c[2], c[3], c[4], DECOUPLED(frame) != 0, c[5], c[6], scale,
        )  # fmt: skip
