"""The encoder's first layer from CSR rows: log1p(x) W^T + s V^T + b, without a dense minibatch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vxpress.core.data import Batch
from vxpress.core.gradients import GradientSink
from vxpress.core.kernels import helpers, sparse_rows, team
from vxpress.core.kernels.frames import Frame, Plan
from vxpress.core.kernels.products import TILE


class InputProduct:
    """One product and its gradients; ``weight`` (hidden, genes + condition) is fastest if stored transposed."""

    def __init__(self, batch: Batch, weight: Tensor, bias: Tensor, s_nc: Tensor | None) -> None:
        self.batch, self.weight, self.bias, self.s_nc = batch, weight, bias, s_nc

    def forward(self, *, ordered: bool) -> Tensor:
        """Compute the product (n, hidden); ``ordered`` prepares the gradient."""
        rows, indptr, indices, data = self.batch.counts.numpy()
        table = self.weight.detach().t().contiguous()
        g = self.batch.counts.n_genes
        out = torch.empty(len(rows), table.shape[1])
        n_threads = helpers.number()
        cuts = team.cut(len(rows), n_threads)
        n_kept = int((indptr[rows + 1] - indptr[rows]).sum()) if ordered else 0
        frame = self.frame = Frame(sparse_rows.ENTRIES)
        nothing = np.empty((len(rows), 0), np.float32)
        frame.update({
            sparse_rows.CUTS: cuts, sparse_rows.ROWS: rows, sparse_rows.INDPTR: indptr, sparse_rows.INDICES: indices,
            sparse_rows.DATA: data, sparse_rows.TABLE: table.numpy()[:g], sparse_rows.BIAS: self.bias.detach().numpy(),
            sparse_rows.OUT: out.detach().numpy(), sparse_rows.FURTHER: nothing, sparse_rows.ADD: True,
            sparse_rows.ENDS: np.empty(g + 1, np.int64), sparse_rows.FREE: np.empty(((len(cuts) - 1) * ordered, g), np.int64),
            sparse_rows.CELLS: np.empty(n_kept, np.int32), sparse_rows.VALUES: np.empty(n_kept, np.float32),
            sparse_rows.LOG_X: np.empty((n_threads, g), np.float32),
        })  # fmt: skip
        encode = [([(sparse_rows.encode, frame)], len(cuts) - 1)]
        Plan(*([[([(sparse_rows.sort, frame)], 1)], encode] if ordered else [encode])).run(n_threads)
        if self.s_nc is not None:
            out.addmm_(self.s_nc.detach(), table[g:])
        return out

    def add_gradient(self, d_out: Tensor, d_table: Tensor) -> None:
        """Add the gradient of the weight, transposed, to ``d_table`` (genes + condition, hidden)."""
        g = self.batch.counts.n_genes
        self.frame.update({sparse_rows.D_OUT: d_out.numpy(), sparse_rows.D_TABLE: d_table.numpy()[:g]})
        Plan([([(sparse_rows.table_gradient, self.frame)], -(-g // TILE))]).run(helpers.number())
        if self.s_nc is not None:
            d_table[g:].addmm_(self.s_nc.detach().t(), d_out)

    def weight_gradient(self, d_out: Tensor) -> Tensor | None:
        """Compute the gradient of the weight, or return None if the optimizer's sink took it."""
        sink: GradientSink | None = getattr(self.weight, "grad_sink", None)
        d_table = torch.zeros(self.weight.shape[::-1]) if sink is None else sink.memory().t()
        self.add_gradient(d_out, d_table)
        return d_table.t() if sink is None else None


def input_product(batch: Batch, weight: Tensor, bias: Tensor, s_nc: Tensor | None) -> Tensor:
    """Compute :class:`InputProduct` for autograd; it can be differentiated once."""
    product: Tensor = _InputProduct.apply(weight, bias, s_nc, batch, torch.is_grad_enabled())
    return product


class _InputProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, s_nc: Tensor | None, batch: Batch, recording: bool) -> Tensor:  # noqa: FBT001
        ctx.product = InputProduct(batch, weight, bias, s_nc)
        return ctx.product.forward(ordered=recording and ctx.needs_input_grad[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        product, d_out = ctx.product, d_out.contiguous()
        needs_weight, needs_bias, needs_condition, *_ = ctx.needs_input_grad
        d_weight = product.weight_gradient(d_out) if needs_weight else None
        d_bias = d_out.sum(0) if needs_bias else None
        d_condition = d_out @ product.weight[:, -product.s_nc.shape[1] :] if needs_condition else None
        return d_weight, d_bias, d_condition, None, None
