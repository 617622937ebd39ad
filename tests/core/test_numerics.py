from __future__ import annotations

import mpmath as mp
import pytest
import torch
from torch import Tensor

from vxpress.core.numerics import (
    log1mexp,
    log_one_plus,
    negative_binomial_log_prob,
    poisson_log_prob,
    stirling_tail,
)

mp.mp.dps = 50


def _exact_tail(a: float) -> float:
    b = mp.mpf(a)
    return float(mp.loggamma(b) - ((b - 0.5) * mp.log(b) - b + mp.log(2 * mp.pi) / 2))


@pytest.mark.parametrize("a", [1e-3, 0.3, 1.0, 5.0, 15.999999, 16.0, 16.000001, 40.0, 1e3, 1e6, 1e12])
def test_stirling_tail_is_the_error_of_stirlings_formula(a: float) -> None:
    value = float(stirling_tail(torch.tensor(a, dtype=torch.float64)))
    assert value == pytest.approx(_exact_tail(a), abs=2e-14, rel=2e-14)


def test_stirling_tail_is_accurate_where_the_textbook_form_is_not() -> None:
    a = torch.tensor([1e4, 1e6, 1e8])
    exact = torch.tensor([_exact_tail(float(v)) for v in a])
    torch.testing.assert_close(stirling_tail(a), exact, rtol=1e-6, atol=0)


def test_stirling_tail_is_smooth_across_its_threshold() -> None:
    a = torch.tensor([0.05, 1.0, 15.0, 16.0 - 1e-3, 16.0 + 1e-3, 17.0, 1e3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stirling_tail, a)
    # the slope just below comes from digamma, just above from the series
    edge = torch.tensor([16.0 - 1e-9, 16.0], dtype=torch.float64, requires_grad=True)
    below, above = torch.autograd.grad(stirling_tail(edge).sum(), edge)[0]
    assert float(below) == pytest.approx(float(above), rel=1e-8)


def test_log_one_plus_agrees_on_both_sides_of_its_threshold() -> None:
    t = torch.linspace(-0.999, 3.0, 101, dtype=torch.float64)
    torch.testing.assert_close(log_one_plus(t, (1 + t).log()), torch.log1p(t), rtol=1e-14, atol=1e-15)


def test_log_one_plus_has_a_finite_gradient_at_minus_one() -> None:
    t = torch.tensor([-1.0, 0.0], dtype=torch.float64, requires_grad=True)
    far = torch.tensor([-50.0, 9.0], dtype=torch.float64)
    value = log_one_plus(t, far)
    assert value.tolist() == [-50.0, 0.0]
    assert torch.autograd.grad(value.sum(), t)[0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("log_rate", [-600.0, -100.0, -8.001, -8.0, -7.999, -1.0, 0.0, 2.0, 6.0])
def test_log1mexp_against_arbitrary_precision(log_rate: float) -> None:
    exact = float(mp.log(-mp.expm1(-mp.exp(mp.mpf(log_rate)))))
    value = float(log1mexp(torch.tensor(log_rate, dtype=torch.float64)))
    assert value == pytest.approx(exact, rel=1e-13, abs=1e-300)


def test_log1mexp_keeps_value_and_gradient_where_the_rate_underflows() -> None:
    log_rate = torch.tensor([-500.0, -120.0, -90.0], requires_grad=True)
    value = log1mexp(log_rate)
    torch.testing.assert_close(value, log_rate)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), log_rate)[0], torch.ones(3))


def test_log1mexp_gradient() -> None:
    log_rate = torch.tensor([-30.0, -8.1, -7.9, -1.0, 1.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log1mexp, log_rate)


def _full_nb(x: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    theta = log_theta.exp()
    return negative_binomial_log_prob(x, log_mean, log_theta, theta, stirling_tail(theta))


def test_gradients_of_the_saddle_point_forms() -> None:
    # counts at, near and far from the mean; theta on both sides of Stirling's threshold
    x = torch.tensor([1.0, 1.0, 7.0, 20.0, 20.0, 300.0], dtype=torch.float64)
    mean = torch.tensor([1.0, 1e-3, 90.0, 20.0, 2.0, 280.0], dtype=torch.float64)
    for theta in (0.1, 15.9999, 16.0001, 500.0):
        log_mean = mean.log().requires_grad_()
        log_theta = torch.full_like(x, theta).log().requires_grad_()
        assert torch.autograd.gradcheck(lambda m, t: _full_nb(x, m, t), (log_mean, log_theta))
    assert torch.autograd.gradcheck(lambda m: poisson_log_prob(x, m), mean.log().requires_grad_())


def test_negative_binomial_of_a_whole_theta_counts_failures() -> None:
    # the probability of x failures before the 3rd success, from binomial coefficients
    p, x = 0.3, torch.arange(1.0, 40.0, dtype=torch.float64)
    exact = torch.tensor(
        [float(mp.binomial(int(k) + 2, int(k)) * mp.mpf(p) ** 3 * (1 - mp.mpf(p)) ** int(k)) for k in x]
    )
    theta = torch.tensor(3.0, dtype=torch.float64)
    log_mean = (theta * (1 - p) / p).log()
    torch.testing.assert_close(_full_nb(x, log_mean, theta.log()).exp(), exact.double(), rtol=1e-6, atol=1e-9)
