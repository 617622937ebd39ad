"""Negative binomial counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

from vxpress.core.likelihoods.base import Decoded, Likelihood
from vxpress.core.likelihoods.counted import where_counted
from vxpress.core.likelihoods.cumulative import count_steps
from vxpress.core.numerics import expected_log1p, negative_binomial_log_prob, stirling_tail


class NegativeBinomial(Likelihood):
    """Negative binomial with mean mu and inverse dispersion theta: variance mu + mu^2 / theta.

    Zeros cost one log1p per cell and gene. Other counts use the saddle-point form of :mod:`vxpress.core.numerics`,
    which stays accurate for theta from 1e-3 to 1e6 and tends to the Poisson distribution.
    """

    has_dispersion = True
    gamma_rate = True
    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, log_theta: Tensor) -> None:
        self.log_mean, self.log_theta = torch.broadcast_tensors(log_mean, log_theta)
        # not broadcast: a dispersion per gene needs one evaluation per gene, not one per cell and gene
        self._theta = log_theta.exp()
        super().__init__(self.log_mean.shape)

    @classmethod
    def from_decoded(cls, decoded: Decoded) -> NegativeBinomial:
        assert decoded.log_dispersion is not None  # noqa: S101 - the decoder builds what the likelihood needs
        return cls(decoded.location_ng + decoded.log_library_n1, decoded.log_dispersion)

    @classmethod
    def overdispersion(cls, log_dispersion: Tensor) -> Tensor:
        return log_dispersion.neg().exp()

    @classmethod
    def rate_update(cls, x: Tensor, mean: Tensor, log_dispersion: Tensor) -> Tensor:
        """Compute (theta + x) / (theta + mean): the rate has a gamma distribution with shape theta."""
        theta = log_dispersion.exp()
        return (theta + x) / (theta + mean)

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean + self.mean.square() / self._theta

    @property
    def zero_probability(self) -> Tensor:
        return (-self._theta * torch.log1p((self.log_mean - self.log_theta).exp())).exp()

    @property
    def log_rate(self) -> Tensor:
        return self.log_mean

    def expected_log1p(self, log_library_n1: Tensor) -> Tensor:
        theta = self.log_theta.exp()
        return expected_log1p((self.log_mean + log_library_n1).exp(), lambda rate: theta * torch.log1p(rate / theta))

    def expected_scaled_log1p(self, scale_n1: Tensor) -> Tensor:
        theta = self._theta
        return expected_log1p(self.mean, lambda rate: theta * torch.log1p(rate / theta), scale_n1)

    def at(self, *index: Tensor | slice) -> NegativeBinomial:
        return NegativeBinomial(self.log_mean[index], self.log_theta[index])

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return count_steps(value, self.log_mean, self.log_theta)

    def log_prob(self, value: Tensor) -> Tensor:
        at_zero = -self._theta * torch.log1p((self.log_mean - self.log_theta).exp())
        tail = stirling_tail(self._theta)
        return where_counted(
            at_zero, value, negative_binomial_log_prob, self.log_mean, self.log_theta, self._theta, tail
        )

    def draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        # a Poisson draw from a gamma-distributed rate
        theta = self._theta.expand(shape).contiguous()
        gamma = torch._standard_gamma(theta, generator=generator)
        return torch.poisson(gamma / theta * self.mean, generator=generator)
