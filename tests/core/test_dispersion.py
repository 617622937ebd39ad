"""Dispersions fitted anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from scipy import optimize, sparse, stats

from vxpress.core.config import ModelConfig
from vxpress.core.counts import Cells, Counts
from vxpress.core.dispersion import PRIOR_SD, has_dispersions, mean_log_likelihood, refit_dispersions
from vxpress.core.vae import VAE, build


def _model(n_genes: int, **settings: object) -> VAE:
    model = build(ModelConfig(n_genes=n_genes, n_latent=2, n_hidden=8, **settings), seed=0)
    with torch.no_grad():
        # what is decoded does not hang on z
        model.decoder.location.weight.zero_()
        model.decoder.location.bias.zero_()
        model.decoder.log_dispersion.zero_()
    return model.eval()


@pytest.mark.parametrize("theta", [0.5, 5.0, 60.0])
def test_theta_is_the_maximum_of_each_genes_likelihood(make_cells: Callable[..., Cells], theta: float) -> None:
    rng, n, g = np.random.default_rng(0), 2000, 4
    library = np.full((n, 1), 4 * 80.0)
    x = rng.poisson(rng.gamma(theta, 80.0 / theta, size=(n, g))).astype(np.float32)
    cells = replace(
        make_cells(n, g),
        counts=Counts.from_scipy(sparse.csr_matrix(x)),
        log_library_n1=torch.tensor(np.log(library), dtype=torch.float32),
    )
    found = refit_dispersions(_model(g), cells, torch.arange(n), seed=0).exp().numpy()[0]
    for j in range(g):
        best = optimize.minimize_scalar(
            lambda t, j=j: (
                -stats.nbinom.logpmf(x[:, j], np.exp(t), np.exp(t) / (np.exp(t) + 80)).sum() + 0.5 * (t / PRIOR_SD) ** 2
            ),
            bounds=(-4, 7),
            method="bounded",
        )
        assert found[j] == pytest.approx(np.exp(best.x), rel=0.05)
    assert found.mean() == pytest.approx(theta, rel=0.15)


def test_batches_get_their_own(make_cells: Callable[..., Cells]) -> None:
    rng, n = np.random.default_rng(1), 3000
    cells = make_cells(n, 3, n_batches=2)
    theta = np.where(np.arange(n) % 2, 20.0, 1.0)[:, None]
    x = rng.poisson(rng.gamma(theta, 50.0 / theta, size=(n, 3))).astype(np.float32)
    cells = replace(
        cells, counts=Counts.from_scipy(sparse.csr_matrix(x)), log_library_n1=torch.full((n, 1), float(np.log(150)))
    )
    model = _model(3, n_categories=(2,), has_batch=True, dispersion="gene-batch")
    found = refit_dispersions(model, cells, torch.arange(n), seed=0).exp().numpy()
    np.testing.assert_allclose(found.mean(1), [1.0, 20.0], rtol=0.12)


def test_genes_without_a_count_keep_theirs(make_cells: Callable[..., Cells]) -> None:
    cells = replace(make_cells(60, 3), counts=Counts.from_scipy(sparse.csr_matrix((60, 3), dtype=np.float32)))
    model = _model(3)
    with torch.no_grad():
        model.decoder.location.bias.copy_(torch.tensor([-20.0, -20.0, 20.0]))
        model.decoder.log_dispersion.copy_(torch.tensor([[1.0, -1.0, 0.0]]))
    found = refit_dispersions(model, cells, torch.arange(60), seed=0)[0]
    np.testing.assert_allclose(found[:2].numpy(), [1.0, -1.0], atol=1e-3)


def test_zero_inflation_is_taken_into_account(make_cells: Callable[..., Cells]) -> None:
    rng, n = np.random.default_rng(2), 4000
    x = rng.poisson(rng.gamma(8.0, 60.0 / 8.0, size=(n, 2))) * (rng.random((n, 2)) > 0.3)
    cells = replace(
        make_cells(n, 2),
        counts=Counts.from_scipy(sparse.csr_matrix(x.astype(np.float32))),
        log_library_n1=torch.full((n, 1), float(np.log(120))),
    )
    model = _model(2, likelihood="zinb")
    with torch.no_grad():
        gate = cast("torch.nn.Linear", model.decoder.heads["gate"])
        gate.weight.zero_()
        gate.bias.fill_(float(np.log(0.3 / 0.7)))
    np.testing.assert_allclose(refit_dispersions(model, cells, torch.arange(n), seed=0).exp()[0], 8.0, rtol=0.1)


def test_the_mean_log_likelihood_is_that_of_the_model(make_cells: Callable[..., Cells]) -> None:
    cells, model = make_cells(30, 5), _model(5)
    found = mean_log_likelihood(model, cells, torch.arange(30), 0)
    x, mu = cells.counts.dense(torch.arange(30)).numpy(), cells.log_library_n1.exp().numpy() / 5
    np.testing.assert_allclose(found, stats.nbinom.logpmf(x, 1.0, 1.0 / (1.0 + mu)).sum(1), rtol=1e-4)


def test_which_models_have_dispersions() -> None:
    for likelihood, expected in {
        "nb": True,
        "zinb": True,
        "poisson": False,
        "gaussian": False,
        "bernoulli": False,
    }.items():
        assert has_dispersions(build(ModelConfig(n_genes=4, n_latent=2, likelihood=likelihood), seed=0)) == expected
    assert not has_dispersions(build(ModelConfig(n_genes=4, n_latent=2, dispersion="gene-cell"), seed=0))
