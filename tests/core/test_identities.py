"""Identities of rate, information, prior gap and bounds, compared with quadrature, closed forms and each other."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

import vxpress as vx
from vxpress.bridge.fits.find_fit import find_fit
from vxpress.bridge.fits.query import read_scored
from vxpress.core.config import PriorConfig
from vxpress.core.inference.importance import importance_bounds, log_likelihoods
from vxpress.core.normal import DiagonalNormal, gaussian_kl
from vxpress.core.priors.base import Prior
from vxpress.core.priors.standard_normal import StandardNormal
from vxpress.metrics import kl_per_dimension, log_aggregate_posterior, mutual_information

Moments = tuple[np.ndarray, np.ndarray]


def draws(mean_nd: np.ndarray, var_nd: np.ndarray, seed: int, n_draws: int = 1) -> np.ndarray:
    """Draw points from every posterior, (n_draws, n, d)."""
    noise = np.random.default_rng(seed).normal(size=(n_draws, *mean_nd.shape))
    return mean_nd + np.sqrt(var_nd) * noise


def rate(mean_nd: np.ndarray, var_nd: np.ndarray) -> float:
    return float(kl_per_dimension(mean_nd, var_nd).sum())


def information(mean_nd: np.ndarray, var_nd: np.ndarray, n_draws: int) -> tuple[float, float]:
    """Estimate I_q(x; z) and its standard error from separate draws."""
    values = [mutual_information(mean_nd, var_nd, rng=seed) for seed in range(n_draws)]
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(n_draws))


def prior_gap(mean_nd: np.ndarray, var_nd: np.ndarray, n_draws: int) -> tuple[float, float]:
    """Estimate KL(q(z) || p(z)) from draws of the mixture q(z), independent of those for the information."""
    z_knd = draws(mean_nd, var_nd, 1000, n_draws)
    log_p_kn = stats.norm.logpdf(z_knd).sum(-1)
    values = [
        (log_aggregate_posterior(z, mean_nd, var_nd) - log_p).mean() for z, log_p in zip(z_knd, log_p_kn, strict=True)
    ]
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(n_draws))


@pytest.fixture(scope="module")
def bimodal() -> Moments:
    """Return 60 posteriors on a line, in two clusters, some narrow and some wide."""
    rng = np.random.default_rng(3)
    mean_n = np.where(np.arange(60) % 3 == 0, 2.5, -0.7) + 0.4 * rng.normal(size=60)
    return mean_n[:, None], rng.uniform(0.05, 0.8, (60, 1))


@pytest.fixture(scope="module")
def real() -> ad.AnnData:
    adata = vx.datasets.pbmc68k_reduced()
    vx.tl.fit_vae(adata, n_latent=4, max_epochs=30, validation_fraction=0.3, denoised=False)
    return adata


def test_the_divergence_in_closed_form_is_that_of_draws() -> None:
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=(40, 3)), rng.uniform(0.1, 1.5, (40, 3))
    q = DiagonalNormal(torch.from_numpy(loc), torch.from_numpy(scale))
    prior = StandardNormal(PriorConfig(), 3)
    exact_n = prior.kl(q).sum(-1).numpy()
    np.testing.assert_allclose(exact_n, gaussian_kl(q, torch.zeros(3), torch.ones(3)).sum(-1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(exact_n.mean(), rate(loc, scale**2), rtol=1e-12)
    z_knd = torch.from_numpy(draws(loc, scale**2, 0, 20_000))
    sampled_kn = Prior.kl(prior, q, z_knd)[..., 0].numpy()
    error_n = sampled_kn.std(0) / np.sqrt(len(sampled_kn))
    assert np.abs((sampled_kn.mean(0) - exact_n) / error_n).max() < 4.5
    plain_kn = (stats.norm.logpdf(z_knd.numpy(), loc, scale) - stats.norm.logpdf(z_knd.numpy())).sum(-1)
    np.testing.assert_allclose(sampled_kn, plain_kn, rtol=1e-9, atol=1e-9)


def test_information_and_prior_gap_are_the_integrals(bimodal: Moments) -> None:
    mean_nd, var_nd = bimodal
    z = np.linspace(-8, 9, 20_001)
    log_q = log_aggregate_posterior(z[:, None], mean_nd, var_nd)
    np.testing.assert_allclose(integrate.trapezoid(np.exp(log_q), z), 1, rtol=1e-9)
    gap = integrate.trapezoid(np.exp(log_q) * (log_q - stats.norm.logpdf(z)), z)
    entropies_n = 0.5 * np.log(2 * np.pi * math.e * var_nd[:, 0])
    known = -integrate.trapezoid(np.exp(log_q) * log_q, z) - entropies_n.mean()
    np.testing.assert_allclose(known + gap, rate(mean_nd, var_nd), rtol=1e-9)
    for (found, error), exact in ((information(mean_nd, var_nd, 400), known), (prior_gap(mean_nd, var_nd, 400), gap)):
        assert abs(found - exact) < 4 * error
        assert error < 0.03 * exact


def test_the_rate_of_a_fit_is_the_sum_of_information_and_prior_gap(real: ad.AnnData) -> None:
    moments = real.obsm["X_vae"].astype(np.float64), real.obsm["X_vae_var"].astype(np.float64)
    known, known_error = information(*moments, 25)
    gap, gap_error = prior_gap(*moments, 25)
    error = np.hypot(known_error, gap_error)
    assert abs(known + gap - rate(*moments)) < 4 * error
    assert error < 0.01 * rate(*moments)
    # both terms are substantial
    assert min(known, gap) > 10 * error


def test_bounds_of_a_fit_rise_with_the_samples(real: ad.AnnData) -> None:
    held_out = real[real.obs["vae_split"] == "validation"].copy()
    fit = find_fit(real, None, "vae")
    found = log_likelihoods(fit.model, read_scored(held_out, fit, None), (1, 10, 100, 1000), seed=0)
    for fewer, more in pairwise(found):
        gain_n = more.log_likelihood_n - fewer.log_likelihood_n
        assert gain_n.mean() > 3 * stats.sem(gain_n)
    # one sample is the ELBO up to the noise of the sample
    first_n = found[0].log_likelihood_n - found[-1].elbo_n
    assert abs(first_n.mean()) < 4 * stats.sem(first_n)
    assert (found[-1].elbo_n < found[-1].log_likelihood_n).all()


N, G, NOISE = 6000, 5, 0.6


class TrueProposal:
    """The posterior of z under p(x | z) = N(W z + b, s^2), W with orthogonal columns, and its importance weights."""

    n_noise = 2

    def __init__(self, model: LinearModel, rows: torch.Tensor) -> None:
        self.x, self.model = torch.from_numpy(model.x[rows.numpy()]), model
        self.q = DiagonalNormal(torch.from_numpy(model.mean_nd[rows.numpy()]), torch.from_numpy(np.sqrt(model.var_d)))
        self.prior = StandardNormal(PriorConfig(), 2)
        self.kl_n = self.prior.kl(DiagonalNormal(self.q.loc, self.q.scale.expand_as(self.q.loc))).sum(-1)

    def __len__(self) -> int:
        return len(self.x)

    def weigh(self, eps_knd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z_knd = self.q.rsample(eps_knd)
        mean = z_knd @ torch.from_numpy(self.model.w).T + torch.from_numpy(self.model.b)
        distribution = torch.distributions.Normal(mean, NOISE)
        return distribution.log_prob(self.x).sum(-1), self.prior.log_prob(z_knd) - self.q.log_prob(z_knd)


def true_proposals(model: LinearModel, n: int, size: int) -> list[TrueProposal]:
    """Return the proposals of the first ``n`` cells, ``size`` at a time."""
    return [TrueProposal(model, rows) for rows in torch.arange(n).split(size)]


def always(proposal: TrueProposal, _: int) -> list[TrueProposal]:
    """Return the same proposal, of all cells."""
    return [proposal]


class LinearModel:
    """Data of p(x | z) = N(W z + b, s^2), the posterior in closed form, and everything it implies."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        basis, _ = np.linalg.qr(rng.normal(size=(G, 2)))
        self.w, self.b = basis * [1.5, 0.7], rng.normal(size=G)
        self.x = rng.normal(size=(N, 2)) @ self.w.T + self.b + NOISE * rng.normal(size=(N, G))
        self.var_d = 1 / (1 + np.square(self.w).sum(0) / NOISE**2)
        self.mean_nd = (self.x - self.b) @ self.w / NOISE**2 * self.var_d
        self.information = -0.5 * np.log(self.var_d).sum()
        self.log_p_n = stats.multivariate_normal(self.b, self.w @ self.w.T + NOISE**2 * np.eye(G)).logpdf(self.x)


def test_a_linear_gaussian_model_agrees_with_its_closed_form() -> None:
    model = LinearModel()
    var_nd = np.broadcast_to(model.var_d, model.mean_nd.shape)
    kl_n = 0.5 * (var_nd + model.mean_nd**2 - 1 - np.log(var_nd)).sum(1)
    sampling = stats.sem(kl_n)
    # rate = information = log det(I + W'W / s^2) / 2, and no gap, of the population; q(z) of the cells is close to p(z)
    assert abs(rate(model.mean_nd, var_nd) - model.information) < 4 * sampling
    known, known_error = information(model.mean_nd[:3000], var_nd[:3000], 6)
    gap, gap_error = prior_gap(model.mean_nd[:3000], var_nd[:3000], 6)
    here = rate(model.mean_nd[:3000], var_nd[:3000])
    assert abs(known + gap - here) < 5 * np.hypot(known_error, gap_error)
    assert abs(known - model.information) < 0.03
    assert abs(gap) < 0.03
    few, many = importance_bounds(partial(true_proposals, model, 500), (1, 50), rows_per_pass=2000, seed=0)
    for found in (few, many):
        np.testing.assert_allclose(found.log_likelihood_n, model.log_p_n[:500], atol=1e-10)
    np.testing.assert_allclose(many.ess_n, 50, rtol=1e-9)
    np.testing.assert_allclose((many.elbo_n - model.log_p_n[:500]).mean(), 0, atol=0.05)
    # E log p(x | z) under q, exactly
    residual_n = (
        np.square(model.x - model.b - model.mean_nd @ model.w.T).sum(1)
        + (np.square(model.w).sum(0) * model.var_d).sum()
    )
    reconstruction_n = -0.5 * (residual_n / NOISE**2 + G * np.log(2 * np.pi * NOISE**2))
    np.testing.assert_allclose(reconstruction_n - kl_n, model.log_p_n, atol=1e-10)


def test_smaller_numbers_of_samples_use_the_first_samples() -> None:
    model = LinearModel()
    model.mean_nd = model.mean_nd + 0.3  # a shifted posterior, so that bounds differ
    few, many = importance_bounds(partial(true_proposals, model, 50), (7, 40), rows_per_pass=2000, seed=3)
    (alone,) = importance_bounds(partial(true_proposals, model, 50), (7,), rows_per_pass=2000, seed=3)
    assert (few.log_likelihood_n != many.log_likelihood_n).all()
    proposal = TrueProposal(model, torch.arange(50))
    generator = torch.Generator().manual_seed(3)
    eps = [torch.randn(k, 50, 2, generator=generator, dtype=torch.float64) for k in (7, 16, 16, 1)]
    log_w = torch.stack(proposal.weigh(torch.cat(eps))).sum(0).numpy()
    for found, k in ((few, 7), (many, 40)):
        np.testing.assert_allclose(found.log_likelihood_n, special.logsumexp(log_w[:k], axis=0) - np.log(k), rtol=1e-12)
    np.testing.assert_array_equal(alone.log_likelihood_n, few.log_likelihood_n)


def test_a_prior_without_a_closed_form_has_its_divergence_sampled() -> None:
    model = LinearModel()
    proposal = TrueProposal(model, torch.arange(50))
    sampled = TrueProposal(model, torch.arange(50))
    sampled.kl_n = None  # type: ignore[assignment]
    exact, found = (
        importance_bounds(partial(always, p), (4000,), rows_per_pass=50 * 16, seed=0)[0] for p in (proposal, sampled)
    )
    np.testing.assert_array_equal(exact.log_likelihood_n, found.log_likelihood_n)
    # with the true posterior every weight is the marginal, so the sampled bound has no noise
    np.testing.assert_allclose(found.elbo_n, model.log_p_n[:50], atol=1e-9)
    assert np.abs(exact.elbo_n - model.log_p_n[:50]).max() < 0.2
