"""NB and ZINB log likelihood of counts and its gradient, row by row, from the decoder's logits.

Softmax, log likelihood and the gradient with respect to the logits are computed for one row (a cell) at a time, in
buffers of one cell's genes, which stay in the first-level cache. The gradient overwrites the logits.  With
mu = l softmax(a), t = mu / theta:

    log NB(x) = -theta log1p(t) + [x > 0] (x log mu - x log1p(t) + sum_{k<x} log1p(k / theta) - log x!)

so a zero costs one exp and one log.  The sum over k < x is read from a table of small counts per gene; larger or
fractional counts use gamma functions in float64.  Loops that reduce and loops that write are separate, with different
flags, because LLVM vectorises them only in this form.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from vxpress.core.kernels.parts import finish, meet, take
from vxpress.core.kernels.team import CACHED, INNER
from vxpress.core.kernels.vector import assign, exp32, fill, from_bfloat16, log1p32, to_bfloat16

# reductions may be reordered; NaN and infinity keep their meaning
SUMS = {"reassoc", "contract", "nsz", "arcp"}
ZERO, ONE = np.float32(0.0), np.float32(1.0)


@njit(**INNER)
def _widen(row, bias, a):
    for j in range(a.size):
        a[j] = from_bfloat16(row[j]) + bias[j]


@njit(**INNER)
def _add(row, bias, a):
    for j in range(a.size):
        a[j] = row[j] + bias[j]


@njit(**INNER)
def _take(low, full, n, bias, a):
    """Read row n of the products, stored as bfloat16 in ``low`` or as float32 in ``full``, and add the bias."""
    if low.shape[0] > 0:
        _widen(low[n], bias, a)
    else:
        _add(full[n], bias, a)


@njit(**INNER)
def _narrow(a, row):
    for j in range(a.size):
        row[j] = to_bfloat16(a[j])


@njit(**INNER)
def _put(a, weight, low, full, n, total):
    """Overwrite the products with a gradient, and add it to the gradient of the bias."""
    _add_scaled(total, weight, a)
    if low.shape[0] > 0:
        _narrow(a, low[n])
    else:
        assign(full[n], a)


@njit(**INNER)
def _add_scaled(total, weight, part):
    for j in range(part.size):
        total[j] += weight * part[j]


LANES = 64


@njit(**INNER)
def _raise_to(a, lanes):
    for c in range(LANES):
        lanes[c] = a[c] if a[c] > lanes[c] else lanes[c]


@njit(**INNER)
def _largest(a, lanes):
    """Find the largest element as the largest of many running maxima, because a single one does not vectorise."""
    fill(lanes, a[0])
    for start in range(0, a.size - LANES + 1, LANES):
        _raise_to(a[start : start + LANES], lanes)
    top = a[0]
    for c in range(LANES):
        top = max(top, lanes[c])
    for j in range(a.size - a.size % LANES, a.size):
        top = max(top, a[j])
    return top


@njit(**INNER)
def _exp_from(a, top, e):
    for j in range(a.size):
        e[j] = exp32(a[j] - top)


@njit(fastmath=SUMS, **INNER)
def _sum(a):
    total = ZERO
    for j in range(a.size):
        total += a[j]
    return total


@njit(**INNER)
def _as_zeros(e, scale, theta, inverse, log_term, value, d_log_mean, d_log_theta):
    """Compute value and gradients of every entry as if its count were zero."""
    for j in range(theta.size):
        mean = e[j] * scale
        t = mean * inverse[j]
        share = ONE / (ONE + t)
        log_term[j] = log1p32(t)
        value[j] = -theta[j] * log_term[j]
        d_log_mean[j] = -mean * share
        d_log_theta[j] = theta[j] * (t * share - log_term[j])


@njit(**INNER)
def _open_gates(w, softplus, closed):
    """Compute softplus(w), which is a term of every entry, and the probability sigmoid(w) that the gate is closed."""
    for j in range(w.size):
        fall = exp32(-abs(w[j]))
        softplus[j] = (w[j] if w[j] > ZERO else ZERO) + log1p32(fall)
        closed[j] = (ONE if w[j] > ZERO else fall) / (ONE + fall)


@njit(**INNER)
def _inflate(w, value, counted):
    """Replace log NB(0) by log(e^w + NB(0)), and compute the probability that a zero is from the negative binomial."""
    for j in range(w.size):
        ahead = w[j] - value[j]
        fall = exp32(-abs(ahead))
        counted[j] = (fall if ahead > ZERO else ONE) / (ONE + fall)
        value[j] = (w[j] if ahead > ZERO else value[j]) + log1p32(fall)


@njit(**INNER)
def _weigh(counted, closed, d_log_mean, d_log_theta, d_gate):
    """Compute gradients of inflated zeros; ``counted`` has one entry per gene, ``d_log_mean`` may have one more."""
    for j in range(counted.size):
        d_log_mean[j] *= counted[j]
        d_log_theta[j] *= counted[j]
        d_gate[j] = ONE - counted[j] - closed[j]


@njit(**INNER)
def _through_softmax(d_log_mean, e, share, d):
    for j in range(e.size):
        d[j] = d_log_mean[j] - e[j] * share


@njit(**INNER)
def fill_row_tables(first, last, theta, rising, slope):
    """Fill the tables of :func:`fill_tables` for one row of dispersions and some genes."""
    for k in range(2):
        fill(rising[k, first:last], ZERO)
        fill(slope[k, first:last], ZERO)
    for k in range(2, rising.shape[0]):
        i = np.float32(k - 1)
        log_k = np.float32(math.log(k))
        for g in range(first, last):
            rising[k, g] = rising[k - 1, g] + (log1p32(i / theta[g]) - log_k)
            slope[k, g] = slope[k - 1, g] + i / (theta[g] + i)


@njit(error_model="numpy", **CACHED)
def fill_tables(theta_rg, rising, slope):
    """Fill tables of sum_{i<k} log1p(i / theta) - log k! and of sum_{i<k} i / (theta + i), (r, k, g), for small k."""
    for r in range(theta_rg.shape[0]):
        fill_row_tables(0, theta_rg.shape[1], theta_rg[r], rising[r], slope[r])


@njit(**INNER)
def _digamma(x):
    shift = 0.0
    while x < 8.0:
        shift -= 1.0 / x
        x += 1.0
    r = 1.0 / x
    r2 = r * r
    tail = r2 * (1 / 12 - r2 * (1 / 120 - r2 * (1 / 252 - r2 * (1 / 240 - r2 / 132))))
    return shift + math.log(x) - 0.5 * r - tail


@njit(**INNER)
def _any_count(x, log_mean, theta):
    """Compute log NB(x) and its gradients with respect to log mean and log theta, for any x > 0."""
    mean = math.exp(log_mean)
    t = mean / theta
    log_term = math.log1p(t)
    value = math.lgamma(x + theta) - math.lgamma(theta) - math.lgamma(x + 1.0)
    value += x * (log_mean - math.log(theta)) - (x + theta) * log_term
    d_log_mean = (x - mean) / (1.0 + t)
    d_theta = _digamma(x + theta) - _digamma(theta) - log_term + (mean - x) / (theta + mean)
    return value, d_log_mean, theta * d_theta


@njit(**INNER)
def _counted(
    indices, data, a, offset, e, scale, theta, inverse, rising, slope, log_term, value, d_log_mean, d_log_theta
):
    """Correct the entries that are not zero; return the sum of their values, which are set to 0 in ``value``."""
    total = 0.0
    for k in range(indices.size):
        j, x = indices[k], data[k]
        if x == ZERO:
            # an explicit zero
            continue
        mean = e[j] * scale
        t = mean * inverse[j]
        share = ONE / (ONE + t)
        log_mean = a[j] + offset
        count = np.int32(x)
        if x == np.float32(count) and 0 <= count < rising.shape[0]:
            total += x * (log_mean - log_term[j]) - theta[j] * log_term[j] + rising[count, j]
            d_log_mean[j] = (x - mean) * share
            d_log_theta[j] = theta[j] * (t * share - log_term[j]) + x * (t * share) - slope[count, j]
        else:
            full, d_mean, d_theta = _any_count(np.float64(x), np.float64(log_mean), np.float64(theta[j]))
            total += full
            d_log_mean[j] = np.float32(d_mean)
            d_log_theta[j] = np.float32(d_theta)
        value[j] = ZERO
    return total


@njit(**INNER)
def row_memory(n_out, n_genes, n_gates):
    """Return the buffers of :func:`score_row`: for the entries of one cell."""
    return (
        np.empty(n_out, np.float32),
        np.empty(LANES, np.float32),
        np.empty(n_genes, np.float32),
        np.empty(n_genes, np.float32),
        # an additional logit, that of the remainder, has no count
        np.zeros(n_out, np.float32),
        np.empty(n_gates, np.float32),
        np.empty(n_gates, np.float32),
        np.empty(n_gates, np.float32),
    )


@njit(**INNER)
def score_row(indices, data, log_library, theta, inverse, rising, slope, a, w, gradient, memory, d_theta, d_gate):
    """Compute the log likelihood of one cell from its logits ``a`` and, if there are any, its gate logits ``w``.

    With ``gradient``, ``a`` is overwritten by the gradient with respect to it; those of log theta and of the gate logits are
    written to ``d_theta`` and ``d_gate``. The second result is the gradient with respect to the log library.
    """
    e, lanes, log_term, entry, d_log_mean, softplus, closed, counted = memory
    top = _largest(a, lanes)
    _exp_from(a, top, e)
    total = _sum(e)
    offset = log_library - top - np.float32(math.log(total))
    scale = np.float32(math.exp(log_library)) / total
    _as_zeros(e, scale, theta, inverse, log_term, entry, d_log_mean, d_theta)
    if w.size > 0:
        _open_gates(w, softplus, closed)
        _inflate(w, entry, counted)
        _weigh(counted, closed, d_log_mean, d_theta, d_gate)
    nonzero = _counted(
        indices, data, a, offset, e, scale, theta, inverse, rising, slope, log_term, entry, d_log_mean, d_theta
    )
    value = nonzero + _sum(entry)
    if w.size > 0:
        value -= _sum(softplus)
    d_mean = _sum(d_log_mean)
    if gradient:
        _through_softmax(d_log_mean, e, d_mean / total, a)
        if w.size > 0:
            for k in range(indices.size):
                if data[k] != ZERO:
                    d_gate[indices[k]] = -closed[indices[k]]
    return value, d_mean


@njit(**INNER)
def _rows(first, last, batch, location, gate, dispersion, gradient, weight, value, d_library, sums):
    """Process rows ``first`` to ``last`` of a minibatch; see :func:`count_rows`."""
    rows, indptr, indices, data, log_library = batch
    low, full, bias = location
    gate_low, gate_full, gate_bias = gate
    row_theta, theta_rg, inverse_rg, rising, slope = dispersion
    d_log_theta, d_bias, d_gate_bias = sums
    n_genes = theta_rg.shape[1]
    memory = row_memory(bias.size, n_genes, gate_bias.size)
    a, d_theta = np.empty(bias.size, np.float32), np.empty(n_genes, np.float32)
    w, d_gate = np.empty(gate_bias.size, np.float32), np.empty(gate_bias.size, np.float32)
    for n in range(first, last):
        r = row_theta[n]
        _take(low, full, n, bias, a)
        if w.size > 0:
            _take(gate_low, gate_full, n, gate_bias, w)
        here = slice(indptr[rows[n]], indptr[rows[n] + 1])
        value[n], d_library[n] = score_row(
            indices[here], data[here], log_library[n], theta_rg[r], inverse_rg[r], rising[r], slope[r],
            a, w, gradient, memory, d_theta, d_gate,
        )  # fmt: skip
        if gradient:
            _put(a, weight[n], low, full, n, d_bias)
            _add_scaled(d_log_theta[r], weight[n], d_theta)
            if w.size > 0:
                _put(d_gate, weight[n], gate_low, gate_full, n, d_gate_bias)


@njit(error_model="numpy", nogil=True, **CACHED)
def count_rows(board, cuts, batch, location, gate, dispersion, gradient, weight, value, d_library, sums):
    """Compute the log likelihood of a minibatch and its gradients, in parts of the cells between two ``cuts``; see :mod:`.parts`.

    ``location`` holds the products of the decoder's output layer without bias, as bfloat16 stored in int16 (n, genes or
    one more) and as float32, one of which has no rows, and the bias. ``gate`` holds the same for the gates; its bias is
    empty without gates. ``batch`` is rows, indptr, indices, data and log library per row. ``dispersion`` is the row of
    theta that each cell uses, theta, 1 / theta and the tables of :func:`fill_tables`. With ``gradient``, the gradients
    with respect to the logits overwrite the products. Those of log theta and the biases, weighted per cell by
    ``weight``, are added to one row per part of ``sums``.
    """
    i = take(board, 0)
    while i < cuts.size - 1:
        part = (sums[0][i], sums[1][i], sums[2][i])
        _rows(
            cuts[i], cuts[i + 1], batch, location, gate, dispersion, gradient, weight, value, d_library, part
        )  # fmt: skip
        finish(board, 0)
        i = take(board, 0)
    meet(board, 0, cuts.size - 1)
