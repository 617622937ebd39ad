"""Batch or layer norm, ReLU and dropout of a hidden layer with their gradients, in a few passes over one small matrix."""

from __future__ import annotations

import numpy as np
from numba import njit

from vxpress.core.kernels.team import CACHED, INNER
from vxpress.core.kernels.vector import fill

OPTIONS = {"error_model": "numpy", "nogil": True, **CACHED}
# a sum over one row may add its terms in any order, so that it is vectorised
ANY_ORDER = {"reassoc", "contract"}
ZERO, ONE = np.float32(0.0), np.float32(1.0)


@njit(**INNER)
def _add_to(total, row):
    for c in range(total.size):
        total[c] += row[c]


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


@njit(**OPTIONS)
def batch_forward(u, gain, shift, eps, random, limit, scale, standard, out, mean, variance):
    """Compute out = dropout(relu(batch_norm(u))); write the minibatch's ``mean`` and (biased) ``variance`` too.

    ``random`` (n, h) holds 16-bit numbers; units with a number below ``limit`` are kept. Without rows, all are kept.
    """
    n = len(u)
    fill(mean, ZERO)
    fill(variance, ZERO)
    for i in range(n):
        _add_to(mean, u[i])
    _scale(mean, ONE / np.float32(n))
    for i in range(n):
        _add_squared_distance(variance, u[i], mean)
    _scale(variance, ONE / np.float32(n))
    inverse_sd = np.empty_like(variance)
    _invert_root(variance, eps, inverse_sd)
    for i in range(n):
        _standardise(u[i], mean, inverse_sd, standard[i])
        _activate(standard[i], gain, shift, out[i])
        if random.shape[0] > 0:
            _drop(out[i], random[i], limit, scale)
    return inverse_sd


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


@njit(**OPTIONS)
def batch_backward(d_out, out, standard, inverse_sd, gain, scale, d_u, d_gain, d_shift):
    """Compute gradients of :func:`batch_forward` with respect to ``u``, gain and shift.

    A unit of 0 was below 0 or dropped.
    """
    n = len(out)
    for i in range(n):
        _through(d_out[i], out[i], scale, d_u[i])
        _sums(d_u[i], standard[i], d_gain, d_shift)
    mean_d, mean_ds = d_shift / np.float32(n), d_gain / np.float32(n)
    factor = gain * inverse_sd
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


@njit(**OPTIONS)
def layer_forward(u, gain, shift, eps, random, limit, scale, standard, out):
    """Compute out = dropout(relu(layer_norm(u))); arguments as in :func:`batch_forward`."""
    inverse_sd = np.empty(len(u), np.float32)
    for i in range(len(u)):
        mean = _mean(u[i])
        inverse_sd[i] = ONE / np.sqrt(_mean_squared_distance(u[i], mean) + eps)
        _standardise_row(u[i], mean, inverse_sd[i], standard[i])
        _activate(standard[i], gain, shift, out[i])
        if random.shape[0] > 0:
            _drop(out[i], random[i], limit, scale)
    return inverse_sd


@njit(**OPTIONS)
def layer_backward(d_out, out, standard, inverse_sd, gain, scale, d_u, d_gain, d_shift):
    """Compute gradients of :func:`layer_forward` with respect to ``u``, gain and shift."""
    for i in range(len(out)):
        _through(d_out[i], out[i], scale, d_u[i])
        _sums(d_u[i], standard[i], d_gain, d_shift)
        _multiply(d_u[i], gain)
        _center_row(d_u[i], standard[i], inverse_sd[i], _mean(d_u[i]), _mean_product(d_u[i], standard[i]))
