"""Detection of genes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

from vxpress.core.likelihoods.base import Decoded, Likelihood
from vxpress.core.numerics import expected_log1p, log1mexp


class Bernoulli(Likelihood):
    """Detection of a gene, x > 0, with probability 1 - exp(-l rho).

    The complementary log-log link keeps sequencing depth out of z.
    """

    observes = "detection"
    support = constraints.boolean

    def __init__(self, log_rate: Tensor) -> None:
        self._log_rate, self.rate = log_rate, log_rate.exp()
        super().__init__(log_rate.shape)

    @classmethod
    def from_decoded(cls, decoded: Decoded) -> Bernoulli:
        return cls(decoded.location_ng + decoded.log_library_n1)

    def observe(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @property
    def mean(self) -> Tensor:
        return -torch.expm1(-self.rate)

    @property
    def variance(self) -> Tensor:
        return self.mean * (-self.rate).exp()

    @property
    def zero_probability(self) -> Tensor:
        return (-self.rate).exp()

    @property
    def log_rate(self) -> Tensor:
        return self._log_rate

    def expected_log1p(self, log_library_n1: Tensor) -> Tensor:
        """Compute E[log1p X] of the Poisson counts from which detection follows."""
        return expected_log1p((self.log_rate + log_library_n1).exp(), lambda rate: rate)

    def at(self, *index: Tensor | slice) -> Bernoulli:
        return Bernoulli(self._log_rate[index])

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        zero = (-self._log_rate.double().exp()).exp()
        return torch.where(value > 0, zero, 0.0), torch.where(value > 0, 1.0, zero)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.where(value > 0, log1mexp(self._log_rate), -self.rate)

    def draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        return torch.bernoulli(self.mean.expand(shape), generator=generator)
