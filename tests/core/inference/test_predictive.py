"""Predictive draws and checks of a model with known predictive distribution, because its decoder ignores z."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.inference.posterior import Encoded
from vxpress.core.inference.predictive import predictive_draws
from vxpress.core.inference.predictive_check import N_BINS, below, predictive_check
from vxpress.core.likelihoods import (
    Bernoulli,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from vxpress.core.model import VAE, build

CANDIDATES: tuple[Any, ...] = ("nb", "zinb", "poisson", "bernoulli", "gaussian")
N, G = 400, 25


def _model(likelihood: Any) -> VAE:
    model = build(ModelConfig(n_genes=G, n_latent=2, n_hidden=8, likelihood=likelihood, norm="none"), 3).eval()
    with torch.no_grad():
        model.decoder.location.weight.zero_()
        model.decoder.location.bias.copy_(torch.linspace(-3, 3, G))
        if "gate" in model.decoder.heads:
            gate: Any = model.decoder.heads["gate"]
            gate.weight.zero_()
            gate.bias.fill_(-1.0)
        if hasattr(model.decoder, "log_dispersion"):
            model.decoder.log_dispersion.copy_(torch.linspace(-1, 2, G))
    return model.requires_grad_(requires_grad=False)


def _nothing(n: int) -> Covariates:
    return Covariates(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0))


def _cells(x: np.ndarray) -> Cells:
    log_library = torch.from_numpy(np.random.default_rng(0).normal(5.0, 0.5, (len(x), 1)).astype(np.float32))
    return Cells(Counts.from_scipy(sparse.csr_matrix(x.astype(np.float32))), log_library, _nothing(len(x)))


def _draws(model: VAE, n_draws: int, seed: int = 0) -> np.ndarray:
    log_library = _cells(np.zeros((N, G))).log_library_n1
    encoded = Encoded({"z": np.zeros((N, 2), np.float32)}, {"z": np.ones((N, 2), np.float32)})
    parts = predictive_draws(model, encoded, _nothing(N), log_library, n_draws=n_draws, seed=seed)
    return np.concatenate([x.numpy() for _, _, x in parts]).reshape(n_draws, N, G)


def _distribution(model: VAE) -> Likelihood:
    with torch.no_grad():
        return model.likelihood({"z": torch.zeros(N, 2)}, _nothing(N), _cells(np.zeros((N, G))).log_library_n1)


@pytest.mark.parametrize("likelihood", CANDIDATES)
def test_draws_follow_the_distribution(likelihood: Any) -> None:
    model, n_draws = _model(likelihood), 60
    x, distribution = _draws(model, n_draws), _distribution(model)
    mean, variance = distribution.mean.double().numpy(), distribution.variance.double().numpy()
    # summed over cells and draws, per gene
    score = (x.sum((0, 1)) - n_draws * mean.sum(0)) / np.sqrt(n_draws * variance.sum(0))
    assert np.abs(score).max() < 4.5
    np.testing.assert_allclose(np.square(x - mean).mean((0, 1)), variance.mean(0), rtol=0.15, atol=1e-3)
    zero = distribution.zero_probability.double().numpy()
    np.testing.assert_allclose((x == 0).mean((0, 1)), zero.mean(0), atol=0.02)


def test_the_first_draw_does_not_depend_on_the_number_of_draws() -> None:
    model = _model("nb")
    np.testing.assert_array_equal(_draws(model, 1)[0], _draws(model, 3)[0])
    assert (_draws(model, 1) != _draws(model, 1, seed=1)).any()


@pytest.mark.parametrize("likelihood", CANDIDATES)
def test_data_of_the_model_itself_are_covered_as_stated(likelihood: Any) -> None:
    model = _model(likelihood)
    x = _draws(model, 1)[0].astype(np.float64)
    cells = _cells(x)
    if likelihood == "gaussian":
        # the core takes counts; these have the drawn log values
        model.decoder.location.bias.data += 8.0
        x = _draws(model, 1)[0].astype(np.float64)
        cells = _cells(np.expm1(x) * cells.log_library_n1.exp().numpy() / 1e4)
    found = predictive_check(model, cells, n_draws=2, seed=0)
    # binomial standard errors at N x G entries, and per gene
    np.testing.assert_allclose(found.coverage, [0.5, 0.9], atol=4 * 0.5 / np.sqrt(N * G))
    np.testing.assert_allclose(found.expressed_coverage, [0.5, 0.9], atol=4 * 0.5 / np.sqrt(found.n_expressed))
    assert np.abs(found.genes.coverage - [[0.5], [0.9]]).max() < 4.5 * 0.5 / np.sqrt(N)
    np.testing.assert_allclose(found.cells.coverage.mean(1), found.coverage)
    np.testing.assert_allclose(found.pit * N_BINS, 1.0, atol=4.5 * np.sqrt(N_BINS / found.n_expressed))
    np.testing.assert_allclose(found.pit.sum(), 1.0)


def test_too_narrow_and_too_wide_distributions_are_distinguished() -> None:
    x = _draws(_model("nb"), 1)[0]
    narrow = predictive_check(_model("poisson"), _cells(x), n_draws=1, seed=0)
    assert narrow.expressed_coverage[1] < 0.75
    assert narrow.pit[0] + narrow.pit[-1] > 0.25
    wide = predictive_check(_model("nb"), _cells(_draws(_model("poisson"), 1)[0]), n_draws=1, seed=0)
    assert wide.expressed_coverage[1] > 0.97


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli"])
def test_predicted_moments_are_those_of_counts_drawn_anew(likelihood: Any) -> None:
    model, n_draws = _model(likelihood), 200
    x = _draws(model, n_draws).astype(np.float64)
    found = predictive_check(model, _cells(x[0]), n_draws=2, seed=0)
    for axis, summary in ((1, found.genes), (2, found.cells)):
        for name, values in (
            ("mean", x.mean(axis)), ("variance", x.var(axis, ddof=1)), ("zero_fraction", (x == 0).mean(axis)),
        ):  # fmt: skip
            np.testing.assert_allclose(getattr(summary, name), values[0], rtol=1e-6, atol=1e-12)
            error = values.std(0, ddof=1) / np.sqrt(n_draws) + 1e-6
            assert (np.abs(getattr(summary, f"{name}_predicted") - values.mean(0)) / error).max() < 6


def test_one_cell_and_no_expressed_entry() -> None:
    cells = replace(_cells(np.zeros((1, G))), log_library_n1=torch.full((1, 1), -20.0))
    found = predictive_check(_model("nb"), cells, n_draws=1, seed=0)
    assert np.isnan(found.genes.variance).all()
    assert found.n_expressed == 0
    assert np.isnan(found.expressed_coverage).all()
    np.testing.assert_allclose(found.coverage, [0.5, 0.9], atol=1e-6)


def test_the_share_below_a_threshold_is_the_mean_over_random_points() -> None:
    low, high = torch.tensor([0.0, 0.2, 0.7, 0.4]), torch.tensor([0.9, 0.3, 1.0, 0.4])
    u = low + (high - low) * torch.linspace(0, 1, 20_001)[:, None]
    for t in (0.05, 0.25, 0.75, 0.95):
        torch.testing.assert_close(below(low, high, t), (u <= t).float().mean(0), atol=2e-4, rtol=0)


# distribution functions


def _steps(distribution: Likelihood, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = distribution.steps(torch.from_numpy(x))
    return low.numpy(), high.numpy()


@pytest.mark.parametrize("log_theta", [-6.0, 0.0, 5.0, 14.0, 34.0, 36.0, 200.0])
def test_distribution_functions_of_counts_are_those_of_scipy(log_theta: float) -> None:
    rng = np.random.default_rng(0)
    log_mean = rng.uniform(-8, 9, 3000)
    mean, theta = np.exp(log_mean), np.exp(log_theta)
    rate = rng.gamma(theta, mean / theta) if log_theta < 20 else mean
    x = rng.poisson(rate).astype(np.float64)
    x[:50] = -1.0
    distribution = NegativeBinomial(torch.from_numpy(log_mean), torch.full((3000,), log_theta, dtype=torch.float64))
    if log_theta < 20:
        expected = stats.nbinom(theta, 1 / (1 + mean / theta))
        tolerance = 1e-9
    else:
        # scipy's parameter has no digits left here, but the distributions agree with Poisson's
        expected, tolerance = stats.poisson(mean), 1e-11
    low, high = _steps(distribution, x)
    np.testing.assert_allclose(low, expected.cdf(x - 1), atol=tolerance)
    np.testing.assert_allclose(high, expected.cdf(x), atol=tolerance)


def test_distribution_functions_of_the_other_distributions() -> None:
    rng = np.random.default_rng(1)
    log_mean, gate, x = rng.uniform(-4, 7, 500), rng.normal(0, 2, 500), rng.poisson(5, 500).astype(np.float64)
    mean = np.exp(log_mean)
    as_tensor = torch.from_numpy
    for found, expected in zip(_steps(Poisson(as_tensor(log_mean)), x), (x - 1, x), strict=True):
        np.testing.assert_allclose(found, stats.poisson.cdf(expected, mean), atol=1e-12)
    base = NegativeBinomial(as_tensor(log_mean), torch.zeros(500, dtype=torch.float64))
    closed = 1 / (1 + np.exp(-gate))
    for found, at in zip(_steps(ZeroInflatedNegativeBinomial(base, as_tensor(gate)), x), (x - 1, x), strict=True):
        expected = np.where(at < 0, 0, closed + (1 - closed) * stats.nbinom.cdf(at, 1, 1 / (1 + mean)))
        np.testing.assert_allclose(found, expected, atol=1e-10)
    seen = (x > 4).astype(np.float64)
    for found, at in zip(_steps(Bernoulli(as_tensor(log_mean)), seen), (seen - 1, seen), strict=True):
        np.testing.assert_allclose(found, stats.bernoulli.cdf(at, -np.expm1(-mean)), atol=1e-12)
    distribution = Gaussian(as_tensor(log_mean), as_tensor(mean), torch.ones(500, 1, dtype=torch.float64)[:, 0])
    for found in _steps(distribution, x):
        np.testing.assert_allclose(found, stats.norm.cdf(x, log_mean, np.sqrt(mean)), atol=1e-12)


@pytest.mark.parametrize("likelihood", CANDIDATES)
def test_selected_entries_have_the_same_distribution(likelihood: Any) -> None:
    distribution = _distribution(_model(likelihood))
    rows, columns = torch.tensor([0, 5, 399]), torch.tensor([3, 3, 24])
    some = distribution.at(rows, columns)
    x = torch.ones(N, G)
    for name in ("mean", "variance", "zero_probability"):
        torch.testing.assert_close(getattr(some, name), getattr(distribution, name)[rows, columns])
    for one, full in zip(some.steps(x[rows, columns]), distribution.steps(x), strict=True):
        torch.testing.assert_close(one, full[rows, columns])
    if distribution.discrete:
        zero = distribution.log_prob(torch.zeros(N, G)).exp()
        torch.testing.assert_close(distribution.zero_probability, zero, rtol=1e-5, atol=1e-7)
