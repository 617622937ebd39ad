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

from vxpress.core.kernels.frames import Frame, Layout, floats, job
from vxpress.core.kernels.parts import call
from vxpress.core.kernels.products import tile
from vxpress.core.kernels.team import INNER
from vxpress.core.kernels.vector import add_scaled, assign, exp32, fill, from_bfloat16, log1p32, narrow

# reductions may be reordered; NaN and infinity keep their meaning
SUMS = {"reassoc", "contract", "nsz", "arcp"}
ZERO, ONE = np.float32(0.0), np.float32(1.0)

# a minibatch: rows of counts in CSR form, the log library of each cell and the row of its dispersions, and results
SCORING = Layout()
ROWS, INDPTR, INDICES = SCORING.array("i8", 1), SCORING.array("i8", 1), SCORING.array("i4", 1)
DATA, LOG_LIBRARY, ROW_THETA = SCORING.array("f4", 1), SCORING.array("f4", 1), SCORING.array("i8", 1)
GRADIENT, VALUE, D_LIBRARY = SCORING.number("i8"), SCORING.array("f8", 1), SCORING.array("f4", 1)
# dispersions (rows, genes), their inverse and logs, and tables of small counts (rows, counts, genes)
THETA, INVERSE, LOG_THETA = (SCORING.array("f4", 2) for _ in range(3))
RISING, SLOPE = (SCORING.array("f4", 3) for _ in range(2))
# memory of each thread for one cell: logits and gates with their gradients, the gradient of log theta, and what lies between
LOGITS, GATES, D_GATES, D_THETA = (SCORING.array("f4", 2) for _ in range(4))
EXP, LANES_OF, LOG_TERM, ENTRY, D_LOG_MEAN, SOFTPLUS, CLOSED = (SCORING.array("f4", 2) for _ in range(7))

# output layers (frames of OUTPUT) of cells in groups between two CUTS, and the weight of each cell in sums over cells
PRODUCTS = Layout()
SCORED, SCORE, CUTS, WEIGHT = PRODUCTS.frame(), PRODUCTS.number("i8"), PRODUCTS.array("i8", 1), PRODUCTS.array("f4", 1)
OUTPUTS, D_LOG_THETA = PRODUCTS.array("i8", 1), PRODUCTS.array("f4", 3)

# products of an output layer without bias: as bfloat16 in int16 (n, genes or one more) and as float32, one of which has no rows.
# With GRADIENT, they are overwritten, and D_BIAS has a row of sums for each group of cells. The memory of each thread in which
# the likelihood reads the logits of a cell, and that in which it writes their gradient.
OUTPUT = Layout()
LOW, FULL, BIAS, D_BIAS = OUTPUT.array("i2", 2), OUTPUT.array("f4", 2), OUTPUT.array("f4", 1), OUTPUT.array("f4", 2)
LOGITS_OF_CELL, GRADIENT_OF_CELL = OUTPUT.array("f4", 2), OUTPUT.array("f4", 2)


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
def _put(a, weight, low, full, n, total):
    """Overwrite the products with a gradient, and add it to the gradient of the bias."""
    add_scaled(total, weight, a)
    if low.shape[0] > 0:
        narrow(a, low[n])
    else:
        assign(full[n], a)


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
def _inflate(w, value, softplus, closed, d_log_mean, d_log_theta, d_gate):
    """Replace log NB(0) by log(e^w + NB(0)), and compute gradients of inflated zeros.

    ``softplus`` receives log(1 + e^w), a term of every entry, and ``closed`` the probability sigmoid(w) that the gate is closed.
    """
    for j in range(w.size):
        fall = exp32(-abs(w[j]))
        softplus[j] = (w[j] if w[j] > ZERO else ZERO) + log1p32(fall)
        closed[j] = (ONE if w[j] > ZERO else fall) / (ONE + fall)
        ahead = w[j] - value[j]
        fall = exp32(-abs(ahead))
        # the probability that a zero is from the negative binomial
        counted = (fall if ahead > ZERO else ONE) / (ONE + fall)
        value[j] = (w[j] if ahead > ZERO else value[j]) + log1p32(fall)
        d_log_mean[j] *= counted
        d_log_theta[j] *= counted
        d_gate[j] = ONE - counted - closed[j]


@njit(**INNER)
def _through_softmax(d_log_mean, e, share, d):
    for j in range(e.size):
        d[j] = d_log_mean[j] - e[j] * share


@njit(**INNER)
def _fill_row_tables(first, last, theta, rising, slope):
    """Fill the tables for one row of dispersions and some genes."""
    for k in range(2):
        fill(rising[k, first:last], ZERO)
        fill(slope[k, first:last], ZERO)
    for k in range(2, rising.shape[0]):
        i = np.float32(k - 1)
        log_k = np.float32(math.log(k))
        for g in range(first, last):
            rising[k, g] = rising[k - 1, g] + (log1p32(i / theta[g]) - log_k)
            slope[k, g] = slope[k - 1, g] + i / (theta[g] + i)


@job
def fill_tables(frame, part, thread):
    """Fill the tables of small counts for a tile of genes: sums over i < k of log1p(i / theta), less log k!, and of i / (theta + i)."""
    theta, rising, slope = THETA(frame), RISING(frame), SLOPE(frame)
    first, last = tile(part, theta.shape[1])
    for r in range(len(theta)):
        _fill_row_tables(first, last, theta[r], rising[r], slope[r])


@job
def dispersions(frame, part, thread):
    """Compute the dispersions of a tile of genes from their logs."""
    log_theta, theta, inverse = LOG_THETA(frame), THETA(frame), INVERSE(frame)
    first, last = tile(part, theta.shape[1])
    for r in range(len(theta)):
        for g in range(first, last):
            theta[r, g] = exp32(log_theta[r, g])
            inverse[r, g] = ONE / theta[r, g]


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


@job
def score(frame, n, thread):
    """Compute the log likelihood of cell ``n`` from its logits and, if there are any, its gate logits.

    They are in :data:`LOGITS` and :data:`GATES` of the thread. With :data:`GRADIENT`, the gradient overwrites the logits, and those
    of log theta and of the gate logits are written to :data:`D_THETA` and :data:`D_GATES`.
    """
    first, last = INDPTR(frame)[ROWS(frame)[n]], INDPTR(frame)[ROWS(frame)[n] + 1]
    indices, data, log_library = INDICES(frame)[first:last], DATA(frame)[first:last], LOG_LIBRARY(frame)[n]
    r = ROW_THETA(frame)[n]
    theta, inverse, rising, slope = THETA(frame)[r], INVERSE(frame)[r], RISING(frame)[r], SLOPE(frame)[r]
    a, w, d_theta, d_gate = LOGITS(frame)[thread], GATES(frame)[thread], D_THETA(frame)[thread], D_GATES(frame)[thread]
    e, log_term, entry, d_log_mean = (
        EXP(frame)[thread],
        LOG_TERM(frame)[thread],
        ENTRY(frame)[thread],
        D_LOG_MEAN(frame)[thread],
    )
    top = _largest(a, LANES_OF(frame)[thread])
    _exp_from(a, top, e)
    total = _sum(e)
    offset = log_library - top - np.float32(math.log(total))
    scale = np.float32(math.exp(log_library)) / total
    _as_zeros(e, scale, theta, inverse, log_term, entry, d_log_mean, d_theta)
    softplus, closed = SOFTPLUS(frame)[thread], CLOSED(frame)[thread]
    if w.size > 0:
        _inflate(w, entry, softplus, closed, d_log_mean, d_theta, d_gate)
    value = _counted(
        indices, data, a, offset, e, scale, theta, inverse, rising, slope, log_term, entry, d_log_mean, d_theta
    )
    value += _sum(entry)
    if w.size > 0:
        value -= _sum(softplus)
    d_mean = _sum(d_log_mean)
    VALUE(frame)[n], D_LIBRARY(frame)[n] = value, d_mean
    if GRADIENT(frame):
        _through_softmax(d_log_mean, e, d_mean / total, a)
        if w.size > 0:
            for k in range(indices.size):
                if data[k] != ZERO:
                    d_gate[indices[k]] = -closed[indices[k]]


@job
def score_group(frame, part, thread):
    """Compute the log likelihood of a group of cells from the products of the output layers, and its gradients."""
    scored, cuts, weight, outputs = SCORED(frame), CUTS(frame), WEIGHT(frame), OUTPUTS(frame)
    d_log_theta, d_theta = D_LOG_THETA(frame)[part], D_THETA(scored)[thread]
    for n in range(cuts[part], cuts[part + 1]):
        for output in outputs:
            _take(LOW(output), FULL(output), n, BIAS(output), LOGITS_OF_CELL(output)[thread])
        call(SCORE(frame), scored, n, thread)
        if GRADIENT(scored):
            add_scaled(d_log_theta[ROW_THETA(scored)[n]], weight[n], d_theta)
            for output in outputs:
                _put(GRADIENT_OF_CELL(output)[thread], weight[n], LOW(output), FULL(output), n, D_BIAS(output)[part])


def set_memory(frame: Frame, n_threads: int, n_out: int, n_genes: int, n_gates: int = 0) -> None:
    """Set the memory of the threads of :data:`score`."""
    widths = {
        LOGITS: n_out,
        EXP: n_out,
        D_LOG_MEAN: n_out,
        LANES_OF: LANES,
        LOG_TERM: n_genes,
        ENTRY: n_genes,
        D_THETA: n_genes,
    }
    widths |= dict.fromkeys((GATES, D_GATES, SOFTPLUS, CLOSED), n_gates)
    # an additional logit, that of the remainder, has no count: its entry of D_LOG_MEAN stays 0
    frame.update({slot: floats(n_threads, width) for slot, width in widths.items()})
