"""Distribution functions of counts, in double precision and accurate in both tails."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from scipy import special
from torch import Tensor

from vxpress.core.kernels.count_steps import count_steps as add_up

# beyond it the distribution functions of the negative binomial and the Poisson distribution agree to 1e-12
MAX_LOG_THETA = 35.0
MAX_SUMMED = 2**24


# counts up to this are added one by one, larger ones at points that are farther and farther apart
ONE_BY_ONE, SPREAD = 32, 1.1
# probability of larger counts that is left out
LEFT_OUT = 1e-7


class Steps(Protocol):
    """A distribution of counts with its distribution function."""

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Compute P(X < ``value``) and P(X <= ``value``)."""

    @property
    def batch_shape(self) -> torch.Size:
        """Cells x genes."""


def expected_by_steps(distribution: Steps, scale_n1: Tensor) -> Tensor:
    """Compute E[log1p(c X)], the sum over counts k of P(X > k) times the growth of log1p(c k) to the next count."""
    scale_n1 = scale_n1.double()
    total = torch.zeros(distribution.batch_shape, dtype=torch.float64)
    k = 0
    while True:
        stop = k + 1 if k < ONE_BY_ONE else int(k * SPREAD)
        # the middle of the interval stands for all of it
        at = torch.full_like(total, (k + stop - 1) // 2)
        above = 1.0 - distribution.steps(at)[1]
        total += above * (torch.log1p(stop * scale_n1) - torch.log1p(k * scale_n1))
        k = stop
        if float(above.max()) < LEFT_OUT or k > MAX_SUMMED:
            return total.to(scale_n1.dtype)


def count_steps(value: Tensor, log_mean: Tensor, log_theta: Tensor) -> tuple[Tensor, Tensor]:
    """Compute P(X < ``value``) and P(X <= ``value``) of negative binomial counts (Poisson where theta is infinite)."""
    shape = np.broadcast_shapes(value.shape, log_mean.shape)
    x, m, t = (part.detach().cpu().double().expand(shape).reshape(-1).numpy() for part in (value, log_mean, log_theta))
    out = np.empty((2, len(x)))
    add_up(x, m, t, out[0], out[1])
    rest = np.flatnonzero(np.isnan(out[1]))
    for row, at_most in enumerate((x[rest] - 1.0, x[rest])):
        out[row, rest] = 1.0 - _above(at_most, m[rest], t[rest])
    below, upto = torch.from_numpy(out).view(2, *shape).to(value.device)
    return below, upto


def _above(x: np.ndarray, log_mean: np.ndarray, log_theta: np.ndarray) -> np.ndarray:
    """Compute P(X > ``x``); the argument of this form stays accurate where the distribution is close to Poisson."""
    theta = np.exp(np.minimum(log_theta, MAX_LOG_THETA))
    counted = np.maximum(x + 1.0, 0.5)
    nb = special.betainc(counted, theta, special.expit(log_mean - log_theta))
    poisson = special.gammainc(counted, np.exp(log_mean))
    return np.where(x < 0, 1.0, np.where(log_theta > MAX_LOG_THETA, poisson, nb))
