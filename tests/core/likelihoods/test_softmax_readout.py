from __future__ import annotations

import pytest
import torch
from scipy import sparse
from torch.nn import functional as F

from vxpress.core import rule
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, Cells, Counts
from vxpress.core.likelihoods import softmax_readout as readout
from vxpress.core.likelihoods.output import ToReadOut


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


@pytest.mark.parametrize("holds", [True, False])
def test_a_readout_is_kept_only_if_it_is_better_at_draws_from_the_posteriors(holds: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    n, g, rows = 200, 12, torch.arange(200)
    mean_nf = torch.randn(n, 2, generator=generator)
    # along an empty dimension, draws say nothing about the cell
    drawn_nf = mean_nf if holds else 3.0 * torch.randn(n, 2, generator=generator)
    logits_ng = torch.linspace(0.0, 2.0, g) + mean_nf @ torch.randn(2, g, generator=generator)
    x_ng = torch.poisson(50.0 * torch.softmax(logits_ng, -1), generator=generator)
    nothing = Covariates(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0))
    cells = Cells(Counts.from_scipy(sparse.csr_matrix(x_ng.numpy())), torch.zeros(n, 1), nothing)
    layer, sums_g = torch.nn.Linear(2, g), x_ng[:160].sum(0)

    def at_means(batch: Batch) -> torch.Tensor:
        return mean_nf[batch.rows]

    def at_draws(batch: Batch) -> torch.Tensor:
        return drawn_nf[batch.rows]

    readout.fit_softmax(layer, ToReadOut(cells, cells, at_means, at_draws, rows[:160], rows[160:], seed=0), sums_g)
    if holds:
        slope = torch.linalg.lstsq(mean_nf - mean_nf.mean(0), logits_ng - logits_ng.mean(0)).solution
        slope = slope - slope.mean(1, keepdim=True)
        found = layer.weight.detach().t()
        found = found - found.mean(1, keepdim=True)
        assert float(F.cosine_similarity(found.flatten(), slope.flatten(), dim=0)) > 0.9
    else:
        assert not layer.weight.any()
        torch.testing.assert_close(layer.bias.softmax(0), (sums_g + 0.5) / (sums_g + 0.5).sum())
