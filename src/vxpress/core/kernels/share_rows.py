"""Shares of genes from the features of decoded cells: product, softmax and sum over draws while a block is in the cache."""

from __future__ import annotations

import numpy as np
from numba import njit

from vxpress.core.kernels.count_rows import _exp_from, _largest, _sum
from vxpress.core.kernels.products import address
from vxpress.core.kernels.team import CACHED

# cells whose logits are computed together
BLOCK, LANES = 32, 64
NO = False


@njit(error_model="numpy", nogil=True, **CACHED)
def add_shares(multiply, f, weight, n_out, columns, factor, out, last):
    """Add shares to ``out``; the last feature is 1 and its weights are the bias, ``weight`` (features, padded outputs)."""
    logits, e = np.empty((BLOCK, weight.shape[1]), np.float32), np.empty(n_out, np.float32)
    lanes = np.empty(LANES, np.float32)
    for start in range(0, len(f), BLOCK):
        size = min(BLOCK, len(f) - start)
        step = 4 * f.shape[1]
        multiply(
            address(f) + start * step, step, 4, address(weight), 4 * weight.shape[1], address(logits),
            4 * weight.shape[1], size, weight.shape[1], f.shape[1], NO, NO,
        )  # fmt: skip
        for r in range(size):
            n = start + r
            a = logits[r, :n_out]
            _exp_from(a, _largest(a, lanes), e)
            scale = factor[n] / _sum(e)
            row = out[n]
            if columns.size > 0:
                for j in range(columns.size):
                    row[j] += scale * e[columns[j]]
            else:
                for j in range(row.size):
                    row[j] += scale * e[j]
            last[n] = scale * e[n_out - 1]
