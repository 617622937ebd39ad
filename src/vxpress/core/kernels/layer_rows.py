"""Batch or layer norm, ReLU and dropout of a hidden layer with their gradients, in a few passes over one small matrix."""

from __future__ import annotations

import numpy as np
from numba import njit

from vxpress.core.kernels.frames import Frame, Layout, floats, job
from vxpress.core.kernels.team import INNER
from vxpress.core.kernels.vector import add_to, fill

# a sum over one row may add its terms in any order, so that it is vectorised
ANY_ORDER = {"reassoc", "contract"}
ZERO, ONE = np.float32(0.0), np.float32(1.0)

# cells (n, units) in groups between two CUTS, and their gradients; INVERSE_SD is that of each cell or, with a batch norm, of each unit
LAYER = Layout()
CUTS, U, STANDARD, OUT, D_OUT, D_U = LAYER.array("i8", 1), *(LAYER.array("f4", 2) for _ in range(5))
GAIN, SHIFT, EPS, INVERSE_SD, MEAN, VARIANCE = (
    LAYER.number("f4") if i == 2 else LAYER.array("f4", 1) for i in range(6)
)
# dropout: 16-bit random numbers (n, units), of which those below LIMIT keep their unit, and its FACTOR; without rows all are kept
RANDOM, LIMIT, FACTOR = LAYER.array("u2", 2), LAYER.number("i8"), LAYER.number("f4")
# gradients of gain and shift for each group (one for all with a batch norm), and their sums
D_GAINS, D_SHIFTS, D_GAIN, D_SHIFT = (
    LAYER.array("f4", 2),
    LAYER.array("f4", 2),
    LAYER.array("f4", 1),
    LAYER.array("f4", 1),
)
# memory of a batch norm
MEAN_D, MEAN_DS, GAIN_OVER_SD = (LAYER.array("f4", 1) for _ in range(3))


@njit(**INNER)
def _add_squared_distance(total, row, center):
    for c in range(total.size):
        total[c] += (row[c] - center[c]) * (row[c] - center[c])


@njit(**INNER)
def _scale(x, factor):
    for c in range(x.size):
        x[c] *= factor


@njit(**INNER)
def _invert_root(variance, eps, out):
    for c in range(out.size):
        out[c] = ONE / np.sqrt(variance[c] + eps)


@njit(**INNER)
def _standardise(row, mean, inverse_sd, out):
    for c in range(row.size):
        out[c] = (row[c] - mean[c]) * inverse_sd[c]


@njit(**INNER)
def _activate(x, gain, shift, out):
    for c in range(x.size):
        y = x[c] * gain[c] + shift[c]
        out[c] = y if y > ZERO else ZERO


@njit(**INNER)
def _drop(y, random, limit, scale):
    for c in range(y.size):
        y[c] = y[c] * scale if random[c] < limit else ZERO


@job
def batch_norm(frame, part, thread):
    """Compute OUT = dropout(relu(batch_norm(U))) of all cells, and the minibatch's (biased) MEAN and VARIANCE."""
    u, standard, out, random, inverse_sd = U(frame), STANDARD(frame), OUT(frame), RANDOM(frame), INVERSE_SD(frame)
    gain, shift, mean, variance, n = GAIN(frame), SHIFT(frame), MEAN(frame), VARIANCE(frame), len(U(frame))
    fill(mean, ZERO)
    fill(variance, ZERO)
    for i in range(n):
        add_to(mean, u[i])
    _scale(mean, ONE / np.float32(n))
    for i in range(n):
        _add_squared_distance(variance, u[i], mean)
    _scale(variance, ONE / np.float32(n))
    _invert_root(variance, EPS(frame), inverse_sd)
    for i in range(n):
        _standardise(u[i], mean, inverse_sd, standard[i])
        _activate(standard[i], gain, shift, out[i])
        if random.shape[0] > 0:
            _drop(out[i], random[i], LIMIT(frame), FACTOR(frame))


@njit(**INNER)
def _through(d_out, out, scale, d):
    for c in range(d.size):
        d[c] = d_out[c] * scale if out[c] > ZERO else ZERO


@njit(**INNER)
def _sums(d, standard, d_gain, d_shift):
    for c in range(d.size):
        d_shift[c] += d[c]
        d_gain[c] += d[c] * standard[c]


@njit(**INNER)
def _center(d, standard, factor, mean_d, mean_ds):
    for c in range(d.size):
        d[c] = factor[c] * (d[c] - mean_d[c] - standard[c] * mean_ds[c])


@job
def batch_norm_gradient(frame, part, thread):
    """Compute the gradient of :data:`batch_norm` with respect to U, GAIN and SHIFT from that of OUT.

    A unit of 0 was below 0 or dropped.
    """
    d_out, out, standard, d_u, inverse_sd = D_OUT(frame), OUT(frame), STANDARD(frame), D_U(frame), INVERSE_SD(frame)
    d_gain, d_shift, gain, scale, n = D_GAINS(frame)[0], D_SHIFTS(frame)[0], GAIN(frame), FACTOR(frame), len(OUT(frame))
    mean_d, mean_ds, factor = MEAN_D(frame), MEAN_DS(frame), GAIN_OVER_SD(frame)
    fill(d_gain, ZERO)
    fill(d_shift, ZERO)
    for i in range(n):
        _through(d_out[i], out[i], scale, d_u[i])
        _sums(d_u[i], standard[i], d_gain, d_shift)
    for c in range(gain.size):
        mean_d[c], mean_ds[c] = d_shift[c] / np.float32(n), d_gain[c] / np.float32(n)
        factor[c] = gain[c] * inverse_sd[c]
    for i in range(n):
        _center(d_u[i], standard[i], factor, mean_d, mean_ds)


@njit(fastmath=ANY_ORDER, **INNER)
def _mean(x):
    total = ZERO
    for c in range(x.size):
        total += x[c]
    return total / np.float32(x.size)


@njit(fastmath=ANY_ORDER, **INNER)
def _mean_squared_distance(x, center):
    total = ZERO
    for c in range(x.size):
        total += (x[c] - center) * (x[c] - center)
    return total / np.float32(x.size)


@njit(fastmath=ANY_ORDER, **INNER)
def _mean_product(x, y):
    total = ZERO
    for c in range(x.size):
        total += x[c] * y[c]
    return total / np.float32(x.size)


@njit(**INNER)
def _standardise_row(row, mean, inverse_sd, out):
    for c in range(row.size):
        out[c] = (row[c] - mean) * inverse_sd


@njit(**INNER)
def _multiply(x, factor):
    for c in range(x.size):
        x[c] *= factor[c]


@njit(**INNER)
def _center_row(d, standard, inverse_sd, mean_d, mean_ds):
    for c in range(d.size):
        d[c] = inverse_sd * (d[c] - mean_d - standard[c] * mean_ds)


@job
def layer_norm(frame, part, thread):
    """Compute OUT = dropout(relu(layer_norm(U))) of a group of cells."""
    u, standard, out, random, inverse_sd = U(frame), STANDARD(frame), OUT(frame), RANDOM(frame), INVERSE_SD(frame)
    gain, shift, cuts = GAIN(frame), SHIFT(frame), CUTS(frame)
    for i in range(cuts[part], cuts[part + 1]):
        mean = _mean(u[i])
        inverse_sd[i] = ONE / np.sqrt(_mean_squared_distance(u[i], mean) + EPS(frame))
        _standardise_row(u[i], mean, inverse_sd[i], standard[i])
        _activate(standard[i], gain, shift, out[i])
        if random.shape[0] > 0:
            _drop(out[i], random[i], LIMIT(frame), FACTOR(frame))


@job
def layer_norm_gradient(frame, part, thread):
    """Compute the gradient of :data:`layer_norm` with respect to U, GAIN and SHIFT from that of OUT."""
    d_out, out, standard, d_u, inverse_sd = D_OUT(frame), OUT(frame), STANDARD(frame), D_U(frame), INVERSE_SD(frame)
    d_gain, d_shift, gain, scale, cuts = (
        D_GAINS(frame)[part],
        D_SHIFTS(frame)[part],
        GAIN(frame),
        FACTOR(frame),
        CUTS(frame),
    )
    fill(d_gain, ZERO)
    fill(d_shift, ZERO)
    for i in range(cuts[part], cuts[part + 1]):
        _through(d_out[i], out[i], scale, d_u[i])
        _sums(d_u[i], standard[i], d_gain, d_shift)
        _multiply(d_u[i], gain)
        _center_row(d_u[i], standard[i], inverse_sd[i], _mean(d_u[i]), _mean_product(d_u[i], standard[i]))


@job
def sum_gradients(frame, part, thread):
    """Add up the gradients of gain and shift over the groups of cells."""
    d_gain, d_shift, d_gains, d_shifts = D_GAIN(frame), D_SHIFT(frame), D_GAINS(frame), D_SHIFTS(frame)
    fill(d_gain, ZERO)
    fill(d_shift, ZERO)
    for i in range(len(d_gains)):
        add_to(d_gain, d_gains[i])
        add_to(d_shift, d_shifts[i])


def hidden(n: int, width: int, *, by_cell: bool) -> Frame:
    """Return a frame with memory for up to ``n`` cells, except U, OUT, D_U, D_OUT and sums of a layer norm's groups."""
    frame = Frame(LAYER)
    frame.update(
        {slot: floats(width) for slot in (MEAN, VARIANCE, MEAN_D, MEAN_DS, GAIN_OVER_SD)}
        | {INVERSE_SD: floats(n if by_cell else width)}
    )
    return frame
