"""Products of log1p counts in CSR rows with the weights of the encoder's first layer.

Weights are (genes, hidden), so each count reads contiguous memory.  The product gathers rows of weights per cell. Its
gradient gathers rows of the cells' gradients per gene, after the minibatch is sorted by gene.  No two threads write to
the same memory.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from vxpress.core.kernels.frames import Layout, job
from vxpress.core.kernels.gathered import WIDE, WIDTH, add_rows, add_rows_narrow
from vxpress.core.kernels.products import address, tile
from vxpress.core.kernels.team import INNER
from vxpress.core.kernels.vector import add_scaled, assign, fill, log1p32

ZERO = np.float32(0.0)

# cells in CSR rows, in groups between two CUTS
ENTRIES = Layout()
CUTS, ROWS, INDPTR, INDICES, DATA = (ENTRIES.array(kind, 1) for kind in ("i8", "i8", "i8", "i4", "f4"))
# the layer: weights of genes and of further inputs (cells, inputs), bias, and the result (cells, hidden)
TABLE, CONDITIONS, FURTHER, OUT, BIAS = *(ENTRIES.array("f4", 2) for _ in range(4)), ENTRIES.array("f4", 1)
# entries in gene order: bounds of the genes, next free place (groups, genes), cells and log1p counts
ENDS, FREE, CELLS, VALUES = (
    ENTRIES.array("i8", 1),
    ENTRIES.array("i8", 2),
    ENTRIES.array("i4", 1),
    ENTRIES.array("f4", 1),
)
# memory of each thread for the entries of a cell, and gradients
LOG_X, D_OUT, D_TABLE, ADD = *(ENTRIES.array("f4", 2) for _ in range(3)), ENTRIES.number("i8")


@njit(**INNER)
def _log1p(x, out):
    for k in range(x.size):
        out[k] = log1p32(x[k])


@njit(**INNER)
def _gather(at, values, table, out):
    """Add sum_k values[k] table[at[k]] to ``out``; a part of it stays in registers while all terms are added, in order."""
    n, step, width = at.size, 4 * table.shape[1], out.size
    here, x, rows, place = address(at), address(values), address(table), address(out)
    c = 0
    while c + WIDE <= width:
        add_rows(here, x, rows + 4 * c, step, place + 4 * c, n)
        c += WIDE
    while c + WIDTH <= width:
        add_rows_narrow(here, x, rows + 4 * c, step, place + 4 * c, n)
        c += WIDTH
    if c < width:
        for k in range(n):
            for j in range(c, width):
                out[j] += values[k] * table[at[k], j]


@njit(**INNER)
def _count_genes(rows, indptr, indices, counts):
    """Compute the number of entries of each gene in some rows."""
    fill(counts, 0)
    for n in range(rows.size):
        for k in range(indptr[rows[n]], indptr[rows[n] + 1]):
            counts[indices[k]] += 1


@job
def sort(frame, part, thread):
    """Compute where the entries of every gene and group of cells have their place in gene order.

    Those of gene g are from ``ENDS[g]`` to ``ENDS[g + 1]``, in the order of the cells; ``FREE`` is where those of a group begin.
    """
    rows, indptr, indices, ends, free, cuts = (
        ROWS(frame),
        INDPTR(frame),
        INDICES(frame),
        ENDS(frame),
        FREE(frame),
        CUTS(frame),
    )
    for i in range(len(free)):
        _count_genes(rows[cuts[i] : cuts[i + 1]], indptr, indices, free[i])
    at = 0
    for g in range(ends.size - 1):
        ends[g] = at
        for i in range(len(free)):
            n = free[i, g]
            free[i, g] = at
            at += n
    ends[ends.size - 1] = at


@job
def encode(frame, part, thread):
    """Compute log1p(x) table + bias for a group of cells; if :data:`FREE` has rows, put their entries in gene order too."""
    rows, indptr, indices, data = ROWS(frame), INDPTR(frame), INDICES(frame), DATA(frame)
    table, bias, out, log_x = TABLE(frame), BIAS(frame), OUT(frame), LOG_X(frame)[thread]
    conditions, further = CONDITIONS(frame), FURTHER(frame)
    free, cells, values, cuts = FREE(frame), CELLS(frame), VALUES(frame), CUTS(frame)
    for n in range(cuts[part], cuts[part + 1]):
        first, last = indptr[rows[n]], indptr[rows[n] + 1]
        genes, x = indices[first:last], data[first:last]
        _log1p(x, log_x)
        assign(out[n], bias)
        _gather(genes, log_x, table, out[n])
        if len(free) > 0:
            for k in range(x.size):
                g = genes[k]
                at = free[part, g]
                free[part, g] = at + 1
                cells[at] = n
                values[at] = log_x[k]
        for c in range(further.shape[1]):
            if further[n, c] != ZERO:
                add_scaled(out[n], further[n, c], conditions[c])


@job
def table_gradient(frame, part, thread):
    """Compute the gradient of the table for a tile of genes from that of the result, or add it with :data:`ADD`."""
    ends, cells, values, d_out, d_table = ENDS(frame), CELLS(frame), VALUES(frame), D_OUT(frame), D_TABLE(frame)
    first, last = tile(part, len(d_table))
    for g in range(first, last):
        if not ADD(frame):
            fill(d_table[g], ZERO)
        _gather(cells[ends[g] : ends[g + 1]], values[ends[g] : ends[g + 1]], d_out, d_table[g])
