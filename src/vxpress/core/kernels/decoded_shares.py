"""The softmax of an output layer for decoded cells, added up over draws, in one compiled pass."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vxpress.core.kernels.products import padded, product
from vxpress.core.kernels.share_rows import add_shares


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
        add_shares(product, with_one.numpy(), self.weight, self.n_out, self.columns, *arrays)
        return last_n
