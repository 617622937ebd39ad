"""Distribution functions of counts, in double precision and accurate in both tails."""

from __future__ import annotations

import numpy as np
import torch
from scipy import special
from torch import Tensor

from vxpress.core.kernels.count_steps import count_steps as add_up

# beyond it the distribution functions of the negative binomial and the Poisson distribution agree to 1e-12
MAX_LOG_THETA = 35.0


def count_steps(value: Tensor, log_mean: Tensor, log_theta: Tensor) -> tuple[Tensor, Tensor]:
    """Compute P(X < ``value``) and P(X <= ``value``) of negative binomial counts (Poisson where theta is infinite)."""
    shape = torch.broadcast_shapes(value.shape, log_mean.shape)
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
