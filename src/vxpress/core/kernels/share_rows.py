"""Shares of genes from the features of decoded cells: product, softmax and sum over draws while a block is in the cache."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from vxpress.core.kernels.count_rows import _exp_from, _largest, _sum
from vxpress.core.kernels.products import address, padded, product
from vxpress.core.kernels.team import CACHED

# cells whose logits are computed together
BLOCK, LANES = 32, 64
NO = False


@njit(error_model="numpy", nogil=True, **CACHED)
def _add(multiply, f, weight, n_out, columns, factor, out, last):
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


class CompiledShares:
    """The softmax of a linear layer, of which some columns are added up (None: as many as the sums have, from the first)."""

    def __init__(self, weight: Tensor, bias: Tensor, columns: Tensor | None) -> None:
        self.n_out, n_features = weight.shape
        self.weight = np.zeros((n_features + 1, padded(self.n_out)), np.float32)
        self.weight[:-1, : self.n_out], self.weight[-1, : self.n_out] = weight.detach().t(), bias.detach()
        self.columns = np.empty(0, np.int64) if columns is None else columns.numpy()

    def add(self, f_nf: Tensor, out: Tensor, factor_n: Tensor | None = None) -> Tensor:
        """Add the shares, times a factor for each cell, to ``out``; return the share of the last output, (n,)."""
        with_one = torch.cat((f_nf, torch.ones_like(f_nf[:, :1])), dim=1)
        factor_n = torch.ones(len(f_nf)) if factor_n is None else factor_n
        last_n = torch.empty(len(f_nf))
        arrays = (factor_n.numpy(), out.numpy(), last_n.numpy())
        _add(product, with_one.numpy(), self.weight, self.n_out, self.columns, *arrays)
        return last_n
