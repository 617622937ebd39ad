"""Products of log1p counts in CSR rows with the weights of the encoder's first layer.

Weights are (genes, hidden), so each count reads contiguous memory.  The product gathers rows of weights per cell. Its
gradient gathers rows of the cells' gradients per gene, after the minibatch is sorted by gene.  No two threads write to
the same memory.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from vxpress.core.kernels.parts import finish, meet, take
from vxpress.core.kernels.team import CACHED, INNER
from vxpress.core.kernels.vector import assign, fill, log1p32

OPTIONS = {"error_model": "numpy", "nogil": True}


@njit(fastmath={"contract"}, **INNER)
def gather(at, values, table, out):
    """Add sum_k values[k] table[at[k]] to ``out``, four terms at a time so that ``out`` is accessed less often."""
    k = 0
    while k + 4 <= at.size:
        x0, x1, x2, x3 = values[k], values[k + 1], values[k + 2], values[k + 3]
        w0, w1, w2, w3 = table[at[k]], table[at[k + 1]], table[at[k + 2]], table[at[k + 3]]
        for c in range(out.size):
            out[c] += x0 * w0[c] + x1 * w1[c] + x2 * w2[c] + x3 * w3[c]
        k += 4
    while k < at.size:
        x0, w0 = values[k], table[at[k]]
        for c in range(out.size):
            out[c] += x0 * w0[c]
        k += 1


@njit(**INNER)
def count_genes(first, last, rows, indptr, indices, counts):
    """Add to ``counts`` the number of entries of each gene in some rows."""
    for n in range(first, last):
        for k in range(indptr[rows[n]], indptr[rows[n] + 1]):
            counts[indices[k]] += 1


@njit(**INNER)
def encode_rows(first, last, rows, indptr, indices, data, weight, bias, out, ordered, free, cells, values):
    """Compute the product of some rows; with ``ordered``, put their entries where those of each gene have space.

    ``free`` is the next free place of each gene, and is moved on.
    """
    log_x = np.empty(weight.shape[0], np.float32)
    for n in range(first, last):
        here = slice(indptr[rows[n]], indptr[rows[n] + 1])
        genes, x = indices[here], data[here]
        for k in range(x.size):
            log_x[k] = log1p32(x[k])
        assign(out[n], bias)
        gather(genes, log_x[: x.size], weight, out[n])
        if ordered:
            for k in range(x.size):
                g = genes[k]
                at = free[g]
                free[g] = at + 1
                cells[at] = n
                values[at] = log_x[k]


@njit(**INNER)
def _forward(first, last, start, rows, indptr, indices, data, weight, bias, out, ordered, bounds, cells, values):
    free = np.empty(bounds.size, np.int64)
    if ordered:
        fill(bounds, 0)
        bounds[0] = start
        count_genes(first, last, rows, indptr, indices, bounds[1:])
        for g in range(1, bounds.size):
            bounds[g] += bounds[g - 1]
        assign(free, bounds)
    encode_rows(first, last, rows, indptr, indices, data, weight, bias, out, ordered, free, cells, values)


@njit(**OPTIONS, **CACHED)
def forward(board, cuts, starts, rows, indptr, indices, data, weight, bias, out, ordered, bounds, cells, values):
    """Compute out (n, hidden) = log1p(x) weight + bias, in parts of the cells between two cuts; see :mod:`.parts`.

    With ``ordered``, the entries of these cells are also stored in gene order for the gradient: those of gene g from
    ``bounds[i, g]`` to ``bounds[i, g + 1]`` of ``cells`` and log1p ``values``, starting at ``starts[i]``.
    """
    i = take(board, 0)
    while i < cuts.size - 1:
        _forward(
            cuts[i], cuts[i + 1], starts[i], rows, indptr, indices, data, weight, bias, out, ordered, bounds[i], cells,
            values,
        )  # fmt: skip
        finish(board, 0)
        i = take(board, 0)
    meet(board, 0, cuts.size - 1)


@njit(**INNER)
def _backward(first, last, bounds, cells, values, d_out, d_weight):
    # the entries of all parts are gathered at once, so that the order of additions does not depend on the parts
    at, x = np.empty(d_out.shape[0], cells.dtype), np.empty(d_out.shape[0], values.dtype)
    for g in range(first, last):
        if bounds.shape[0] == 1:
            here = slice(bounds[0, g], bounds[0, g + 1])
            gather(cells[here], values[here], d_out, d_weight[g])
            continue
        n = 0
        for i in range(bounds.shape[0]):
            for k in range(bounds[i, g], bounds[i, g + 1]):
                at[n], x[n] = cells[k], values[k]
                n += 1
        gather(at[:n], x[:n], d_out, d_weight[g])


@njit(**OPTIONS, **CACHED)
def backward(board, cuts, bounds, cells, values, d_out, d_weight):
    """Add log1p(x)^T d_out to d_weight (genes, hidden), in parts of the genes between two cuts; see :mod:`.parts`."""
    i = take(board, 0)
    while i < cuts.size - 1:
        _backward(cuts[i], cuts[i + 1], bounds, cells, values, d_out, d_weight)
        finish(board, 0)
        i = take(board, 0)
    meet(board, 0, cuts.size - 1)
