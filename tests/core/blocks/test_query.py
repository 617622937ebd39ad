"""A latent block of cells with missing genes or new categories."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from vxpress.core.data import Counts
from vxpress.core.inference.posterior import encode
from vxpress.core.noise import Noise
from vxpress.core.query.fine_tuning import Completed, _bound, fine_tune
from vxpress.core.query.masked import Missing, encode_masked
from vxpress.core.query.surgery import extend, new_weights

from ._shift import G, MakeCells, decoded_shares, informed, make_config


def test_missing_genes_are_filled_in_for_every_block(make_cells: MakeCells) -> None:
    cells, model = make_cells(12, n_batches=2), informed(make_config())
    observed = torch.ones(G, dtype=torch.bool)
    everything = encode_masked(model, cells, Missing(observed, library_known=True)).encoded
    plain = encode(model, cells)
    np.testing.assert_allclose(everything.mean["shift"], plain.mean["shift"], rtol=1e-4, atol=1e-5)
    missing, x_ng = torch.tensor([3, 7]), cells.batch(torch.arange(12)).x_ng
    left_out = x_ng.clone()
    left_out[:, missing] = 0.0
    without = replace(cells, counts=Counts.from_scipy(sparse.csr_matrix(left_out.numpy())))
    with torch.no_grad():
        batch, log_x_nm = without.batch(torch.arange(12)), x_ng[:, missing].log1p()
        filled = model.blocks["shift"].filled_encoder(batch, None, missing)(log_x_nm)
    np.testing.assert_allclose(filled.loc, plain.mean["shift"], rtol=1e-4, atol=1e-5)
    observed[missing] = False
    # one round by hand: expected counts at the posterior of all blocks with zeros, then all blocks again
    some = encode_masked(model, without, Missing(observed, library_known=True), n_rounds=1).encoded
    with torch.no_grad():
        distribution = model.likelihood(model.posterior(batch).mean(), batch.covariates, batch.log_library_n1)
        log_x_nm = distribution.at(slice(None), missing).expected_log1p(torch.zeros(12, 1))
        for name in ("z", "shift"):
            filled = model.blocks[name].filled_encoder(batch, None, missing)(log_x_nm)
            np.testing.assert_allclose(some.mean[name], filled.loc, rtol=1e-4, atol=1e-5)


def test_the_library_of_cells_with_missing_genes_is_without_the_factor_of_a_block(make_cells: MakeCells) -> None:
    cells, model = make_cells(12, n_batches=2), informed(make_config(blocks=("depth",)))
    observed = torch.arange(G) < 15
    x_ng = cells.batch(torch.arange(12)).x_ng * observed
    part = replace(cells, counts=Counts.from_scipy(sparse.csr_matrix(x_ng.numpy())))

    def libraries() -> Tensor:
        return encode_masked(model, part, Missing(observed, library_known=False), n_rounds=1).log_library_n1

    before = libraries()
    with torch.no_grad():
        model.blocks["depth"].encoder.mean.bias.add_(2.0)
    torch.testing.assert_close(libraries(), before)
    share_n = decoded_shares(model, cells, **model.posterior(part.batch(torch.arange(12))).mean())
    factor_n = model.posterior(part.batch(torch.arange(12)))["depth"].loc[:, 0].exp()
    expected = cells.log_library_n1[:, 0] - (share_n[:, observed].sum(1) / factor_n).log()
    torch.testing.assert_close(before[:, 0], expected.detach(), rtol=1e-4, atol=1e-4)


def test_fine_tuning_on_measured_genes_decodes_at_the_posterior_of_every_block(make_cells: MakeCells) -> None:
    cells, model = make_cells(8, n_batches=2), informed(make_config())
    observed, batch, shift = torch.arange(G) < 15, cells.batch(torch.tensor([1, 3])), torch.linspace(-3, 3, 8)[:, None]
    eps = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = _bound(model, batch, Noise(0), eps, Completed(observed, torch.zeros(8, 16), {"shift": shift}))
        q = model.posterior(batch)["z"]
        z = q.rsample(eps[:, :2])
        distribution = model.likelihood({"z": z, "shift": shift[[1, 3]]}, batch.covariates, batch.log_library_n1)
        expected = distribution.log_prob(batch.x_ng)[:, observed].sum(-1) - model.prior.kl(q, z).sum(-1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("encode_covariates", [False, True])
def test_new_categories(make_cells: MakeCells, encode_covariates: bool) -> None:
    cells = make_cells(40, n_batches=2)
    model = informed(make_config(encode_covariates=encode_covariates))
    new = extend(model, [1])
    batch = cells.batch(torch.arange(40))
    with torch.no_grad():
        torch.testing.assert_close(new.posterior(batch)["shift"].loc, model.posterior(batch)["shift"].loc)
    assert any(name.startswith("blocks.shift.") for name in new_weights(new, [1])) == encode_covariates
    moved = replace(cells, covariates=cells.covariates.with_batch(2))
    rows = torch.arange(40)
    tuned = fine_tune(new, moved, [1], rows[8:], rows[:8], max_epochs=2, seed=0)
    assert np.isfinite([tuned.before, tuned.after]).all()
