from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from vxpress.core.config import Dispersion, ModelConfig
from vxpress.core.data import Cells
from vxpress.core.inference.own_counts import updated_expression
from vxpress.core.inference.posterior import Draws, Genes, encode, expected_expression
from vxpress.core.model import VAE, build


def _model(dispersion: Dispersion = "gene", *, remainder: bool = True, n_readout: int = 0) -> VAE:
    config = ModelConfig(
        n_genes=20, n_latent=3, n_hidden=8, dispersion=dispersion, n_categories=(2,), has_batch=True, remainder=remainder,
        n_readout=n_readout,
    )  # fmt: skip
    model = build(config, seed=0).eval()
    if n_readout:
        model.get_buffer("outside_share").fill_(0.3)
    return model


def test_the_update_is_the_mean_of_the_rate_given_the_count() -> None:
    """Compare with numerical integration of Poisson times gamma."""
    theta, mean, rate = 1.7, 3.2, np.linspace(1e-4, 80, 400_000)
    for x in (0, 1, 9):
        weight = stats.poisson.pmf(x, rate) * stats.gamma.pdf(rate, theta, scale=mean / theta)
        expected = (rate * weight).sum() / weight.sum()
        assert mean * (theta + x) / (theta + mean) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
@pytest.mark.parametrize(("remainder", "n_readout"), [(True, 0), (True, 7), (False, 7)])
def test_it_is_the_factor_of_the_own_mean_times_the_decoded_expression(
    make_cells: Callable[..., Cells], dispersion: Dispersion, remainder: bool, n_readout: int
) -> None:
    cells, model = make_cells(n_batches=2), _model(dispersion, remainder=remainder, n_readout=n_readout)
    encoded = encode(model, cells)
    x_ng = cells.batch(torch.arange(120)).x_ng
    row = cells.covariates.categorical_nk[:, 0] if dispersion == "gene-batch" else torch.zeros(120, dtype=torch.int64)
    theta = model.decoder.log_dispersion[row].exp()
    own = next(iter(expected_expression(model, encoded, cells.covariates, Draws(4, (None,), 3))))[1].clone()
    mean_ng = own * cells.log_library_n1.exp() / (1.0 if remainder or not n_readout else 0.7)
    factor = ((theta + x_ng) / (theta + mean_ng)).detach()
    for batches in ((None,), (0, 1), (1,)):
        draws = Draws(4, batches, 3)
        _, plain, outside_read = next(iter(expected_expression(model, encoded, cells.covariates, draws)))
        _, found, outside = next(iter(updated_expression(model, encoded, cells, draws)))
        torch.testing.assert_close(found, plain * factor)
        if outside_read is not None:
            torch.testing.assert_close(outside, outside_read)
        some = Genes(torch.tensor([4, 0]), torch.tensor([], dtype=torch.int64))
        _, part, _ = next(iter(updated_expression(model, encoded, cells, draws, some)))
        torch.testing.assert_close(part, found[:, [4, 0]])


def test_without_overdispersion_counts_have_no_effect_and_with_infinite_overdispersion_they_decide(
    make_cells: Callable[..., Cells],
) -> None:
    cells, model = make_cells(n_batches=2), _model()
    encoded, draws = encode(model, cells), Draws(4, (None,), 3)
    _, plain, _ = next(iter(expected_expression(model, encoded, cells.covariates, draws)))
    with torch.no_grad():
        model.decoder.log_dispersion.fill_(18.0)
    _, found, _ = next(iter(updated_expression(model, encoded, cells, draws)))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        model.decoder.log_dispersion.fill_(-18.0)
    _, found, _ = next(iter(updated_expression(model, encoded, cells, draws)))
    x_ng = cells.batch(torch.arange(120)).x_ng
    torch.testing.assert_close(found * cells.log_library_n1.exp(), x_ng, rtol=1e-4, atol=1e-4)
