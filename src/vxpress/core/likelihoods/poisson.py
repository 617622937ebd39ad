"""Poisson counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

from vxpress.core.likelihoods.base import Decoded, Likelihood
from vxpress.core.likelihoods.counted import where_counted
from vxpress.core.likelihoods.cumulative import count_steps
from vxpress.core.numerics import expected_log1p, poisson_log_prob


class Poisson(Likelihood):
    """Poisson counts: variance equal to the mean."""

    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor) -> None:
        self.log_mean = log_mean
        super().__init__(log_mean.shape)

    @classmethod
    def from_decoded(cls, decoded: Decoded) -> Poisson:
        return cls(decoded.location_ng + decoded.log_library_n1)

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean

    @property
    def zero_probability(self) -> Tensor:
        return (-self.mean).exp()

    @property
    def log_rate(self) -> Tensor:
        return self.log_mean

    def expected_log1p(self, log_library_n1: Tensor) -> Tensor:
        return expected_log1p((self.log_mean + log_library_n1).exp(), lambda rate: rate)

    def expected_scaled_log1p(self, scale_n1: Tensor) -> Tensor:
        return expected_log1p(self.mean, lambda rate: rate, scale_n1)

    def at(self, *index: Tensor | slice) -> Poisson:
        return Poisson(self.log_mean[index])

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return count_steps(value, self.log_mean, torch.full_like(self.log_mean, torch.inf))

    def log_prob(self, value: Tensor) -> Tensor:
        return where_counted(-self.mean, value, poisson_log_prob, self.log_mean)

    def draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        return torch.poisson(self.mean.expand(shape), generator=generator)
