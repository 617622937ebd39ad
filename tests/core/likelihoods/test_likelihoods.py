from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from vxpress.core.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Decoded,
    Gaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
)

mp.mp.dps = 40

COUNTS = (0.0, 1.0, 2.0, 17.0, 100.0, 1e4, 1e6)
MEANS = (1e-8, 1e-3, 1.0, 30.0, 1e3, 1e5)
THETAS = (1e-3, 0.1, 1.0, 15.99, 16.0, 100.0, 1e4, 1e6)


def f64(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


@cache
def _hostile(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return extreme counts, log means and log thetas of ``dtype``, with their exact log NB and log Poisson."""
    grid = torch.tensor(list(product(COUNTS, MEANS, THETAS)), dtype=torch.float64)
    x, log_mean, log_theta = grid[:, 0].to(dtype), grid[:, 1].log().to(dtype), grid[:, 2].log().to(dtype)
    nb, poisson = [], []
    for k, a, b in zip(x.tolist(), log_mean.tolist(), log_theta.tolist(), strict=True):
        m, t = mp.exp(mp.mpf(a)), mp.exp(mp.mpf(b))
        gammas = mp.loggamma(t + k) - mp.loggamma(t) - mp.loggamma(k + 1)
        nb.append(float(gammas - t * mp.log1p(m / t) + k * (mp.mpf(a) - mp.log(t + m))))
        poisson.append(float(k * mp.mpf(a) - m - mp.loggamma(k + 1)))
    return x, log_mean, log_theta, f64(nb), f64(poisson)


def _relative(value: Tensor, exact: Tensor) -> float:
    assert torch.isfinite(value).all()
    return float(((value.double() - exact).abs() / (1 + exact.abs())).max())


def test_float64_is_exact_over_the_extreme_range() -> None:
    x, log_mean, log_theta, nb, poisson = _hostile(torch.float64)
    assert _relative(NegativeBinomial(log_mean, log_theta).log_prob(x), nb) < 5e-14
    assert _relative(Poisson(log_mean).log_prob(x), poisson) < 5e-14


def test_float32_values_keep_five_digits_over_the_extreme_range() -> None:
    x, log_mean, log_theta, nb, poisson = _hostile(torch.float32)
    assert _relative(NegativeBinomial(log_mean, log_theta).log_prob(x), nb) < 1e-5
    assert _relative(Poisson(log_mean).log_prob(x), poisson) < 1e-5


@pytest.mark.parametrize("gate", [None, -50.0, 0.0, 50.0])
def test_float32_gradients_are_close_to_float64_over_the_extreme_range(gate: float | None) -> None:
    x, log_mean, log_theta, *_ = _hostile(torch.float32)

    def gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (log_mean, log_theta)]
        distribution: Likelihood = NegativeBinomial(leaves[0], leaves[1])
        if gate is not None:
            leaves.append(torch.full_like(leaves[0], gate, requires_grad=True))
            distribution = ZeroInflated(distribution, leaves[2])
        return torch.autograd.grad(distribution.log_prob(x.to(dtype)).sum(), leaves)

    # the slope in log theta is a difference of terms of the order of the count and the mean
    scale = 1 + x.double() + log_mean.double().exp()
    single, double = gradients(torch.float32), gradients(torch.float64)
    assert _relative(single[0], double[0]) < 1e-5
    assert torch.isfinite(single[1]).all()
    assert float(((single[1] - double[1]).abs() / scale).max()) < 2e-6
    if gate is not None:
        assert _relative(single[2], double[2]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x", [0.0, 3.0, 1e6])
def test_a_share_that_underflows_keeps_value_and_gradient(x: float, dtype: torch.dtype) -> None:
    log_rate = torch.tensor([-200.0], dtype=dtype, requires_grad=True)
    theta = torch.zeros(1, dtype=dtype)
    for distribution, slope in (
        (Poisson(log_rate), x),
        (NegativeBinomial(log_rate, theta), x),
        (Bernoulli(log_rate), float(x > 0)),
    ):
        value = distribution.log_prob(torch.tensor([x], dtype=dtype))
        gamma = float(torch.lgamma(f64(x + 1))) if isinstance(distribution, Poisson) else 0.0
        torch.testing.assert_close(value, torch.tensor([-200 * slope - gamma], dtype=dtype))
        torch.testing.assert_close(torch.autograd.grad(value, log_rate)[0], torch.tensor([slope], dtype=dtype))


@pytest.mark.parametrize("gate", [-800.0, -50.0, 50.0, 800.0])
def test_gate_limits(gate: float) -> None:
    x, base = f64([0.0, 1.0, 8.0, 900.0]), NegativeBinomial(f64([2.0]), f64([0.3]))
    distribution = ZeroInflated(base, f64([gate]))
    if gate < 0:  # no gate: the base distribution
        torch.testing.assert_close(distribution.log_prob(x), base.log_prob(x), rtol=1e-14, atol=0)
        torch.testing.assert_close(distribution.variance, base.variance)
    else:  # a point mass at zero
        torch.testing.assert_close(distribution.log_prob(x).exp(), f64([1.0, 0.0, 0.0, 0.0]), rtol=0, atol=1e-20)
        torch.testing.assert_close(distribution.log_prob(x)[1:], base.log_prob(x)[1:] - gate, rtol=1e-14, atol=0)
        assert float(distribution.mean) == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize(("mean", "theta"), list(product([1e-3, 0.7, 40.0, 5e3], [0.05, 2.0, 300.0])))
def test_against_scipy(mean: float, theta: float) -> None:
    x = np.array([0, 1, 3, 50, 2000])
    distribution = NegativeBinomial(f64([mean]).log(), f64([theta]).log())
    np.testing.assert_allclose(
        distribution.log_prob(f64(x)), stats.nbinom.logpmf(x, theta, theta / (theta + mean)), rtol=1e-9
    )
    np.testing.assert_allclose(Poisson(f64([mean]).log()).log_prob(f64(x)), stats.poisson.logpmf(x, mean), rtol=1e-11)


@pytest.mark.parametrize("mean", [1e-8, 0.2, 30.0])
def test_negative_binomial_tends_to_poisson(mean: float) -> None:
    x, log_mean = f64([0.0, 1.0, 5.0, 40.0]), f64([mean]).log()
    poisson = Poisson(log_mean).log_prob(x)
    gaps = [(NegativeBinomial(log_mean, f64([t]).log()).log_prob(x) - poisson).abs() for t in (1e6, 1e8, 1e12)]
    # the first correction is ((x - mean)^2 - x) / (2 theta)
    for gap, theta in zip(gaps, (1e6, 1e8, 1e12), strict=True):
        torch.testing.assert_close(gap, (((x - mean) ** 2 - x) / (2 * theta)).abs(), rtol=1e-3, atol=2e-13)


@pytest.mark.parametrize("log_rate", [-200.0, -30.0, -8.0, -1.0, 0.0, 3.0])
def test_bernoulli_is_the_probability_of_any_poisson_count(log_rate: float) -> None:
    distribution, poisson = Bernoulli(f64([log_rate])), Poisson(f64([log_rate]))
    exact = float(mp.log(-mp.expm1(-mp.exp(mp.mpf(log_rate)))))
    assert float(distribution.log_prob(f64([1.0]))) == pytest.approx(exact, rel=1e-13)
    torch.testing.assert_close(distribution.log_prob(f64([7.0])), distribution.log_prob(f64([1.0])))
    torch.testing.assert_close(distribution.log_prob(f64([0.0])), poisson.log_prob(f64([0.0])))


def test_gaussian_is_the_normal_distribution_of_log1p_cp10k() -> None:
    rng = np.random.default_rng(0)
    x, library = rng.poisson(3.0, (4, 3)), np.array([[1.0], [20.0], [1e4], [3e5]])
    loc, log_variance = rng.normal(size=(4, 3)), np.array([[-40.0, 0.0, 5.0]])
    distribution = Gaussian.from_decoded(Decoded(f64(loc), f64(np.log(library)), f64(log_variance)))
    scale = np.sqrt(1e-3 + np.exp(log_variance))
    exact = stats.norm.logpdf(np.log1p(1e4 * x / library), loc, scale)
    np.testing.assert_allclose(distribution.log_prob(f64(x)), exact, rtol=1e-10)
    np.testing.assert_allclose(distribution.stddev, np.broadcast_to(scale, (4, 3)))


CANDIDATES: dict[str, Callable[[], Likelihood]] = {
    "nb wide": lambda: NegativeBinomial(f64([-2.0, 0.0, 3.4]), f64([-1.2])),
    "nb narrow": lambda: NegativeBinomial(f64([-2.0, 0.0, 3.4]), f64([4.0])),
    "zinb": lambda: ZeroInflated(NegativeBinomial(f64([-2.0, 0.0, 3.4]), f64([0.5])), f64([-3.0, 0.0, 1.0])),
    "poisson": lambda: Poisson(f64([-2.0, 0.0, 4.0])),
    "bernoulli": lambda: Bernoulli(f64([-6.0, 0.0, 1.0])),
}


def _pmf(name: str) -> tuple[Likelihood, Tensor, Tensor]:
    distribution = CANDIDATES[name]()
    x = torch.arange(2 if name == "bernoulli" else 8000, dtype=torch.float64)[:, None]
    return distribution, x, distribution.log_prob(x.expand(-1, 3)).exp()


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_pmf_sums_to_one_and_has_its_moments(name: str) -> None:
    distribution, x, p = _pmf(name)
    torch.testing.assert_close(p.sum(0), torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)
    mean = (x * p).sum(0)
    torch.testing.assert_close(distribution.mean, mean, rtol=1e-11, atol=0)
    torch.testing.assert_close(distribution.variance.expand(3), ((x - mean) ** 2 * p).sum(0), rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", CANDIDATES)
def test_samples_have_the_moments_within_sampling_error(name: str) -> None:
    distribution, x, p = _pmf(name)
    n = 60_000
    draws = distribution.sample(torch.Size([n]), generator=torch.Generator().manual_seed(1))
    assert draws.shape == (n, 3)
    assert torch.equal(draws, draws.round())
    fourth = ((x - distribution.mean) ** 4 * p).sum(0)
    mean_error, variance_error = (distribution.variance / n).sqrt(), ((fourth - distribution.variance**2) / n).sqrt()
    assert (((draws.mean(0) - distribution.mean) / mean_error).abs() < 4.5).all()
    assert (((draws.var(0) - distribution.variance) / variance_error).abs() < 4.5).all()
    zero_error = (p[0] * (1 - p[0]) / n).sqrt()
    assert ((((draws == 0).double().mean(0) - p[0]) / zero_error).abs() < 4.5).all()


def test_every_likelihood_declares_what_it_needs() -> None:
    heads = {name: f64([[0.0, 0.0]]) for kind in LIKELIHOODS.values() for name in kind.heads}
    decoded = Decoded(f64([[-1.0, -2.0]]), f64([[3.0]]), f64([[0.0, 0.0]]), heads)
    for distribution in LIKELIHOODS.values():
        needed = Decoded(
            decoded.location_ng,
            decoded.log_library_n1,
            decoded.log_dispersion if distribution.has_dispersion else None,
            {name: decoded.heads[name] for name in distribution.heads},
        )
        x = f64([[0.0, 4.0]])
        torch.testing.assert_close(
            distribution.from_decoded(needed).log_prob(x), distribution.from_decoded(decoded).log_prob(x)
        )
