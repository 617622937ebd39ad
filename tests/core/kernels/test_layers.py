"""Input product and hidden layer, compared with torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vxpress.core.data import Cells
from vxpress.core.kernels import hidden_layer
from vxpress.core.kernels.input_layer import input_product
from vxpress.core.noise import Noise

MakeCells = Callable[..., Cells]


@pytest.mark.parametrize("n_condition", [0, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_input_product(make_cells: MakeCells, n_condition: int, transposed: bool, threads: int) -> None:
    batch = make_cells(40, 30).batch(torch.tensor([3, 39, 3, 0, 17]))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 30 + n_condition, generator=generator)
    weight = (weight.t().contiguous().t() if transposed else weight).requires_grad_()
    bias = torch.randn(7, generator=generator).requires_grad_()
    s = torch.randn(5, n_condition, generator=generator).requires_grad_() if n_condition else None
    x = batch.x_ng.log1p() if s is None else torch.cat((batch.x_ng.log1p(), s), 1)
    inputs = [weight, bias, *([] if s is None else [s])]
    expected = nn.functional.linear(x, weight, bias)
    torch.set_num_threads(threads)
    mine = input_product(batch, weight, bias, s)
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(5, 7, generator=generator)
    for a, b in zip(
        torch.autograd.grad(mine, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch.set_num_threads(1)


@pytest.mark.parametrize("keep", [1.0, 0.7])
@pytest.mark.parametrize("width", [2, 9, 64])
@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_hidden_layer(kind: str, width: int, keep: float) -> None:
    u = torch.randn(50, width, generator=torch.Generator().manual_seed(0)).mul_(3).add_(5).requires_grad_()
    mine, theirs = (
        nn.BatchNorm1d(width, momentum=0.1, eps=1e-3) if kind == "batch" else nn.LayerNorm(width, eps=1e-3)
        for _ in range(2)
    )
    for norm in (mine, theirs):
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
        nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(2))
    bits, limit = Noise(0).dropout_bits(u, 1 - keep)
    out = hidden_layer.norm_relu_dropout(u, mine, bits, limit)
    expected = theirs(u).relu()
    if keep < 1:
        expected = expected * Noise(0).dropout(u, keep)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(50, width, generator=torch.Generator().manual_seed(3))
    gradients = (
        torch.autograd.grad(y, [u, norm.weight, norm.bias], upstream) for y, norm in ((out, mine), (expected, theirs))
    )
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)
    for a, b in zip(mine.buffers(), theirs.buffers(), strict=True):
        if a.dim():  # the number of minibatches is not used
            torch.testing.assert_close(a, b)


def test_the_layer_of_a_cell_does_not_depend_on_other_cells_with_layer_norm() -> None:
    norm, u = nn.LayerNorm(37), torch.randn(6, 37, generator=torch.Generator().manual_seed(0))
    bits, limit = Noise(0).dropout_bits(u, 0.0)
    together = hidden_layer.norm_relu_dropout(u, norm, bits, limit)
    alone = torch.cat([hidden_layer.norm_relu_dropout(u[i : i + 1], norm, bits, limit) for i in range(6)])
    assert torch.equal(together, alone)
