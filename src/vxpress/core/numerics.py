"""Numerical functions that stay accurate where the textbook formula loses digits.

Count distributions are written in the saddle-point form of Loader (2000, "Fast and accurate computation of binomial
probabilities"): the leading terms of the gamma functions cancel on paper instead of in floating point.  At a count
of 1e6 each gamma function is 1e7, and their float32 difference is wrong by whole nats; this form keeps 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_STIRLING_FROM = 16.0
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# below this rate log(1 - exp(-r)) is log r - r / 2 + r^2 / 24 to the last digit of float64
_LOG_SMALL_RATE = -8.0
# trapezoidal rule in log t: the integrand is analytic; it decays as t to the left and doubly exponentially to the right
_STEP, _LEFTMOST = 1.5, -13.0
# for counts that are multiplied by a factor, which may be small, or large for large counts
_SCALED_STEP, _SCALED_LEFTMOST = 1.0, -20.0


def _rule(step: float, leftmost: float) -> tuple[np.ndarray, float]:
    """Return the points t, and the weight of all points to their left, where the integrand is linear in t."""
    at = np.exp(np.arange(leftmost, 2.5, step))
    return at, float(at[0] / np.expm1(step))


_NODES, _LEFT_TAIL = _rule(_STEP, _LEFTMOST)
_SCALED_NODES, _SCALED_LEFT_TAIL = _rule(_SCALED_STEP, _SCALED_LEFTMOST)


def stirling_tail(a: Tensor) -> Tensor:
    """Compute the error of Stirling's formula, lgamma(a) - [(a - 1/2) log a - a + log(2 pi) / 2], for a > 0."""
    large = a >= _STIRLING_FROM
    small_a = torch.where(large, _STIRLING_FROM, a)
    direct = torch.lgamma(small_a) - ((small_a - 0.5) * small_a.log() - small_a + _HALF_LOG_2PI)
    r = 1.0 / torch.where(large, a, _STIRLING_FROM)
    r2 = r * r
    series = r * (1 / 12 + r2 * (-1 / 360 + r2 * (1 / 1260 + r2 * (-1 / 1680 + r2 / 1188))))
    return torch.where(large, series, direct)


def log_one_plus(t: Tensor, far: Tensor) -> Tensor:
    """Compute log(1 + t) for t near 0, else return ``far``, the same number computed without t (inaccurate near -1)."""
    near = t.abs() < 0.5
    return torch.where(near, torch.log1p(torch.where(near, t, 0.0)), far)


def log1mexp(log_rate: Tensor) -> Tensor:
    """Compute log(1 - exp(-r)) from log r, for any r.

    Where r underflows, value and gradient are those of the limit log r.
    """
    small = log_rate < _LOG_SMALL_RATE
    rate = torch.where(small, log_rate, _LOG_SMALL_RATE).exp()
    series = log_rate + rate * (rate / 24 - 0.5)
    direct = torch.log(-torch.expm1(-torch.where(small, 0.0, log_rate).exp()))
    return torch.where(small, series, direct)


def poisson_log_prob(x: Tensor, log_mean: Tensor) -> Tensor:
    """Compute the log probability of x > 0 under a Poisson distribution."""
    mean, log_x = log_mean.exp(), x.log()
    shift = x * log_one_plus((mean - x) / x, log_mean - log_x) + (x - mean)
    return shift - 0.5 * log_x - _HALF_LOG_2PI - stirling_tail(x)


def negative_binomial_log_prob(
    x: Tensor, log_mean: Tensor, log_theta: Tensor, theta: Tensor, tail_theta: Tensor
) -> Tensor:
    """Compute the log probability of x > 0 under a negative binomial distribution.

    ``theta`` and its Stirling tail are passed because many x often share them. The formula is
    theta log(n / (theta + mu)) + x log(n mu / (x (theta + mu))) + log(theta / (2 pi x n)) / 2 + tails, with
    n = theta + x.  Where x is near mu, both logarithms have arguments near 1, hence the form log(1 + t).
    """
    mean, log_x = log_mean.exp(), x.log()
    n, total = theta + x, theta + mean
    log_n, log_total = n.log(), total.log()
    t = (x - mean) / total
    shift = theta * log_one_plus(t, log_n - log_total)
    shift = shift + x * log_one_plus(-theta * t / x, log_n + log_mean - log_x - log_total)
    tails = stirling_tail(n) - tail_theta - stirling_tail(x)
    return shift + 0.5 * (log_theta - log_x - log_n) - _HALF_LOG_2PI + tails


def expected_log1p(mean: Tensor, cumulant: Callable[[Tensor], Tensor], scale: Tensor | None = None) -> Tensor:
    """Compute E[log1p(c X)] of counts from their generating function, E[(1 - s)^X] = exp(-cumulant(s mean)).

    log(1 + cx) is the integral of (1 - exp(-tcx)) exp(-t) / t over t > 0. Its expectation is therefore the integral of
    (1 - G(exp(-tc))) exp(-t) / t with the generating function G.

    Parameters
    ----------
    mean
        Mean of every count, of any shape.
    cumulant
        The function above: the identity for Poisson counts, ``torch.log1p`` for a geometric distribution.
    scale
        The factor c, which broadcasts to ``mean``; 1 by default.

    Returns
    -------
    The expectations, with the shape of ``mean``.
    """
    if scale is None:
        total = mean * _LEFT_TAIL
        for t in _NODES:
            total.sub_(torch.expm1(-cumulant(mean * float(-np.expm1(-t)))), alpha=float(np.exp(-t)))
        return total.mul_(_STEP)
    total = mean * scale * _SCALED_LEFT_TAIL
    for t in _SCALED_NODES:
        total.sub_(torch.expm1(-cumulant(mean * -torch.expm1(-t * scale))), alpha=float(np.exp(-t)))
    return total.mul_(_SCALED_STEP)
