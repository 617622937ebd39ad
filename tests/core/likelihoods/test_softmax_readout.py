from __future__ import annotations

import pytest
import torch
from scipy import sparse
from torch.nn import functional as F

from vxpress.core import rule
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.likelihoods import softmax_readout as readout


def _problem(n: int, g: int, h: int) -> tuple[torch.nn.Linear, torch.Tensor, Cells, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_ng = torch.poisson(torch.rand(n, g, generator=generator) * 0.3, generator=generator)
    # a cell without molecules has no effect
    x_ng[1] = 0.0
    layer = torch.nn.Linear(h, g)
    with torch.no_grad():
        layer.weight.copy_(0.2 * torch.randn(g, h, generator=generator))
        layer.bias.copy_(torch.randn(g, generator=generator))
    f_nf = torch.randn(n, h, generator=generator)
    counts = Counts.from_scipy(sparse.csr_matrix(x_ng.numpy()))
    nothing = Covariates(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0))
    return layer, f_nf, Cells(counts, torch.zeros(n, 1), nothing), x_ng


@pytest.mark.parametrize(("n", "g", "h", "tolerance"), [(9, 30, 5, 1e-6), (64, 400, 64, 1e-6), (64, 400, 64, 2e-2)])
def test_the_gradient_equals_that_of_autograd(
    monkeypatch: pytest.MonkeyPatch, n: int, g: int, h: int, tolerance: float
) -> None:
    coarse = tolerance > 1e-3
    monkeypatch.setattr(rule, "native_bfloat16", lambda: coarse)
    layer, f_nf, outside, x_ng = _problem(n, g, h)
    gradient = readout._Gradient(layer, n)
    assert (gradient.dtype == torch.bfloat16) == coarse
    gradient.set(f_nf, *outside.batch(torch.arange(n)).entries())
    mine = [w.grad for w in (layer.weight, layer.bias)]
    loss = -(x_ng * F.log_softmax(layer(f_nf), dim=-1)).sum() / x_ng.sum()
    for got, expected in zip(mine, torch.autograd.grad(loss, (layer.weight, layer.bias)), strict=True):
        assert got is not None
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    plain = -float((x_ng * F.log_softmax(layer(f_nf).detach(), dim=-1)).sum())
    assert readout._mean_loss(layer, lambda batch: f_nf[batch.rows], outside, torch.arange(n)) == pytest.approx(
        plain, rel=1e-5
    )


@pytest.mark.parametrize("n", [1, 3, 300, 600])
def test_there_are_as_many_minibatches_as_steps(n: int) -> None:
    rows = torch.arange(n) + 5
    batches = list(readout._batches(rows, 10, torch.Generator().manual_seed(0)))
    assert len(batches) == 10
    assert max(map(len, batches)) <= readout.BATCH
    per_pass = -(-n // readout.BATCH)
    assert torch.equal(torch.cat(batches[:per_pass]).sort().values, rows)
