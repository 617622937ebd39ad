"""The readout of genes that only some cells measured: its gradient, its start, and counts of unmeasured genes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.likelihoods import ToReadOut
from vxpress.core.likelihoods.anchored_readout import _Cells
from vxpress.core.model import VAE, build

N, G, O = 60, 8, 12
ROWS = torch.arange(N)
MEASURED = torch.ones(2, G, dtype=torch.bool)
MEASURED[0, 5:] = False
OUTSIDE = torch.ones(2, O, dtype=torch.bool)
OUTSIDE[0, :4] = False
OUTSIDE[1, 4:7] = False


def _case(*, remainder: bool) -> tuple[VAE, ToReadOut]:
    rng = np.random.default_rng(0)
    panel_n = ROWS % 2
    inside = torch.from_numpy(rng.poisson(5.0, (N, G)).astype("f4")) * MEASURED[panel_n]
    # counts of unmeasured genes must not matter
    outside = torch.from_numpy(rng.poisson(rng.gamma(2.0, 2.0, O), (N, O)).astype("f4"))
    covariates = Covariates(torch.zeros(N, 0, dtype=torch.int64), torch.zeros(N, 0), panel_n=panel_n)
    library = inside.sum(1, keepdim=True) + (outside[:, OUTSIDE.all(0)].sum(1, keepdim=True) if remainder else 0.0)
    cells, others = (
        Cells(Counts.from_scipy(sparse.csr_matrix(x.numpy())), library.log(), covariates) for x in (inside, outside)
    )
    model = build(ModelConfig(G, n_latent=2, n_hidden=6, n_panels=2, n_readout=O, remainder=remainder), 0).eval()
    assert model.panels is not None
    model.panels.set(MEASURED, OUTSIDE)
    f_nf = torch.randn(N, model.decoder.location.in_features, generator=torch.Generator().manual_seed(1))
    tables = (model.panels.measured_pg, model.panels.outside_pg)
    data = ToReadOut(cells, others, lambda b: f_nf[b.rows], lambda b: f_nf[b.rows], ROWS, ROWS[:0], 0, tables)
    return model, data


@pytest.mark.parametrize("remainder", [False, True])
def test_gradient_and_loss_are_those_of_the_multinomial_of_measured_genes(*, remainder: bool) -> None:
    model, data = _case(remainder=remainder)
    layers, readout = model.layers, model.decoder.readout
    assert readout is not None
    layers.kept["outside_share"].fill_(0.6)
    cells = _Cells(layers, data)
    batch = data.outside.batch(ROWS)
    cells.set_gradient(batch)
    found = readout.weight.grad, readout.bias.grad
    f_nf, total = data.features(batch), torch.zeros(())
    with torch.no_grad():
        location = layers.location(f_nf)
        rho = location[:, :G].softmax(1)
        ratio = location[:, G:].exp() / location[:, :G].exp().sum(1, keepdim=True) if remainder else torch.ones(N, 1)
    x_ng, inside = data.outside.batch(ROWS).x_ng, data.cells.batch(ROWS).x_ng
    for n in range(N):
        seen, genes = OUTSIDE[n % 2], MEASURED[n % 2]
        rates = readout(f_nf[n])[seen].exp() * ratio[n]
        shares = torch.cat((rho[n, genes].sum()[None], rates))
        counts = torch.cat((inside[n].sum()[None], x_ng[n, seen]))
        total = total - (counts * (shares / shares.sum()).log()).sum()
    molecules = inside.sum() + (x_ng * OUTSIDE[ROWS % 2]).sum()
    expected = torch.autograd.grad(total / molecules, (readout.weight, readout.bias))
    for one, two in zip(found, expected, strict=True):
        assert one is not None
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)
    assert cells.mean_loss(data.features, data.outside, ROWS) == pytest.approx(float(total.detach()), rel=1e-5)


def test_decoded_shares_add_up_over_all_genes_and_have_the_ratios_of_the_readout() -> None:
    model, data = _case(remainder=True)
    layers = model.layers
    layers.kept["outside_share"].fill_(0.6)
    sums = model.decoder.output.sums(layers, N, None, None).again(N)
    f_nf = data.features(data.outside.batch(ROWS))
    with torch.no_grad():
        sums.add(f_nf)
        inside, outside = sums.mean(N, 1)
        assert outside is not None
        torch.testing.assert_close(inside.sum(1) + outside.sum(1), torch.ones(N))
        assert layers.readout is not None
        location = layers.location(f_nf)
        rate = layers.readout(f_nf) + location[:, G:] - location[:, :G].logsumexp(1, keepdim=True)
        torch.testing.assert_close((outside / inside.sum(1, keepdim=True)).log(), rate, rtol=1e-4, atol=1e-4)
        some = model.decoder.output.sums(layers, N, torch.tensor([3, 1]), torch.tensor([], dtype=torch.int64)).again(N)
        some.add(f_nf)
        torch.testing.assert_close(some.mean(N, 1)[0], inside[:, [3, 1]])


def test_the_count_distribution_has_the_measured_molecules() -> None:
    model, data = _case(remainder=False)
    batch = data.cells.batch(ROWS)
    with torch.no_grad():
        mean = model.likelihood(model.posterior(batch).mean(), batch.covariates, batch.log_library_n1).mean
    torch.testing.assert_close((mean * MEASURED[ROWS % 2]).sum(1), batch.x_ng.sum(1), rtol=1e-4, atol=1e-3)
