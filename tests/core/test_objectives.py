from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from scipy import sparse, stats
from torch.distributions import Normal, kl_divergence

from vxpress.core.bodies import MLP
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, Cells, Counts, Rows
from vxpress.core.model import VAE, build
from vxpress.core.networks import MIN_POSTERIOR_VARIANCE, Noise
from vxpress.core.objectives import Elbo, elbo

MakeCells = Callable[..., Cells]
CONFIG = ModelConfig(n_genes=20, n_latent=4, n_hidden=16, n_categories=(3,), has_batch=True)


def _batch(make_cells: MakeCells) -> Batch:
    cells = make_cells(30, n_batches=3)
    return cells.batch(torch.arange(30))


def test_beta_weighs_only_the_divergence_of_z() -> None:
    terms = Elbo({"rna": torch.tensor([-10.0, -20.0])}, {"z": torch.tensor([[1.0, 2.0], [0.0, 0.5]])})
    assert terms.value().tolist() == [-13.0, -20.5]
    assert terms.value(4.0).tolist() == [-22.0, -22.0]
    assert terms.value(0.0).tolist() == [-10.0, -20.0]
    library = {"library": torch.tensor([[1.0], [3.0]])}
    assert replace(terms, kl=terms.kl | library).value(2.0).tolist() == [-17.0, -24.0]


def test_a_decoder_that_ignores_z_gives_the_closed_form(make_cells: MakeCells) -> None:
    batch, model = _batch(make_cells), build(CONFIG, 0).eval()
    with torch.no_grad():
        model.decoder.location.weight.zero_()
        terms = elbo(model, batch, Noise(0))
        rho_g = model.decoder.location.bias.double().softmax(0).numpy()
        theta_g = model.decoder.log_dispersion[0].double().exp().numpy()
        q = model.posterior(batch)["z"]
    mean_ng = batch.log_library_n1.double().exp().numpy() * rho_g
    exact = stats.nbinom.logpmf(batch.x_ng.numpy(), theta_g, theta_g / (theta_g + mean_ng)).sum(1)
    np.testing.assert_allclose(terms.reconstruction_n, exact, rtol=1e-5)
    torch.testing.assert_close(
        terms.kl["z"], kl_divergence(Normal(q.loc, q.scale), Normal(0.0, 1.0)), rtol=1e-4, atol=1e-6
    )


def test_the_divergence_of_a_latent_library(make_cells: MakeCells) -> None:
    batch, model = _batch(make_cells), build(replace(CONFIG, latent_library=True), 0).eval()
    model.get_buffer("blocks.library.log_mean_b").copy_(torch.tensor([5.0, 6.0, 7.0]))
    model.get_buffer("blocks.library.log_var_b").copy_(torch.tensor([0.1, 0.5, 2.0]))
    with torch.no_grad():
        terms = elbo(model, batch, Noise(0))
        q = model.posterior(batch)["library"]
    code = batch.covariates.categorical_nk[:, 0]
    prior = Normal(
        model.get_buffer("blocks.library.log_mean_b")[code], model.get_buffer("blocks.library.log_var_b")[code].sqrt()
    )
    exact = kl_divergence(Normal(q.loc[:, 0], q.scale[:, 0]), prior)
    torch.testing.assert_close(terms.kl["library"][:, 0], exact, rtol=1e-4, atol=1e-5)


def test_a_latent_library_replaces_the_observed_one(make_cells: MakeCells) -> None:
    batch, model = _batch(make_cells), build(replace(CONFIG, latent_library=True), 0).eval()
    eps_nd = torch.zeros(30, 5)  # the last column is the library's
    with torch.no_grad():
        terms = elbo(model, batch, Noise(0), eps_nd)
        other = elbo(model, replace(batch, log_library_n1=batch.log_library_n1 + 5), Noise(0), eps_nd)
    assert torch.equal(terms.reconstruction_n, other.reconstruction_n)


@pytest.mark.parametrize("latent_library", [False, True])
def test_given_noise_makes_the_bound_a_function(make_cells: MakeCells, latent_library: bool) -> None:
    batch, model = _batch(make_cells), build(replace(CONFIG, latent_library=latent_library), 0).eval()
    eps_nd = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = [elbo(model, batch, Noise(seed), eps_nd).value() for seed in (1, 2)]
        drawn = [elbo(model, batch, Noise(seed)).value() for seed in (1, 2)]
    assert torch.equal(*values)
    assert not torch.equal(*drawn)


def _linear_gaussian(slope_g: np.ndarray, mean_g: np.ndarray, variance_g: np.ndarray) -> VAE:
    """y = slope z + mean + noise, with the exact posterior as encoder: relu(. + 1000) is linear."""
    g = len(slope_g)
    config = ModelConfig(n_genes=g, n_latent=1, n_hidden=1, likelihood="gaussian", norm="none", dropout=0.0)
    model, far = build(config, 0).double().eval(), 1e3
    posterior_variance = 1 / (1 + (slope_g**2 / variance_g).sum())
    weight_g = posterior_variance * slope_g / variance_g

    def fill(linear: torch.nn.Module, weight: object, bias: object) -> None:
        assert isinstance(linear, torch.nn.Linear)
        linear.weight.copy_(torch.as_tensor(weight).reshape(linear.weight.shape))
        linear.bias.copy_(torch.as_tensor(bias).reshape(linear.bias.shape))

    with torch.no_grad():
        fill(model.encoder.body.linears[0], weight_g, far - (weight_g * mean_g).sum())
        fill(model.encoder.mean, 1.0, -far)
        fill(model.encoder.log_variance, 0.0, np.log(posterior_variance - MIN_POSTERIOR_VARIANCE))
        fill(cast("MLP", model.decoder.body).linears[0], 1.0, far)
        fill(model.decoder.location, slope_g, mean_g - far * slope_g)
        model.decoder.log_dispersion.copy_(torch.as_tensor(np.log(variance_g - 1e-3)))
    return model


def test_the_bound_is_the_log_evidence_where_the_posterior_is_exact() -> None:
    rng = np.random.default_rng(0)
    slope_g, mean_g, variance_g = rng.normal(size=5), rng.uniform(1, 3, 5), rng.uniform(0.2, 2, 5)
    x_ng = torch.as_tensor(rng.poisson(6.0, (7, 5)), dtype=torch.float64)
    # with a library of 1e4 the distribution is of log1p(x), which is what the encoder sees too
    log_library = torch.full((7, 1), np.log(1e4), dtype=torch.float64)
    counts = Counts.from_scipy(sparse.csr_matrix(x_ng.numpy()))
    nothing = Covariates(torch.zeros(7, 0, dtype=torch.int64), torch.zeros(7, 0))
    batch = Batch(Rows(torch.arange(7), counts), torch.arange(7), log_library, nothing)
    model = _linear_gaussian(slope_g, mean_g, variance_g)
    with torch.no_grad():
        # a quadratic in the noise has its expectation at the mean of -1 and 1
        bounds = [elbo(model, batch, Noise(0), torch.full((7, 1), e, dtype=torch.float64)).value() for e in (-1.0, 1.0)]
    covariance = np.outer(slope_g, slope_g) + np.diag(variance_g)
    evidence = stats.multivariate_normal.logpdf(np.log1p(x_ng.numpy()), mean_g, covariance)
    np.testing.assert_allclose((bounds[0] + bounds[1]) / 2, evidence, rtol=1e-8)

    with torch.no_grad():  # the bound is lower for any other posterior
        model.encoder.mean.bias.add_(0.1)
        bounds = [elbo(model, batch, Noise(0), torch.full((7, 1), e, dtype=torch.float64)).value() for e in (-1.0, 1.0)]
    assert (((bounds[0] + bounds[1]) / 2).numpy() < evidence - 1e-4).all()
