"""Protein counts: a mixture of two negative binomial distributions, background and foreground (Gayoso et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from vxpress.core.likelihoods.base import Decoded, Likelihood
from vxpress.core.likelihoods.foreground import BACKGROUND, MIXING, Foreground
from vxpress.core.likelihoods.negative_binomial import NegativeBinomial
from vxpress.core.likelihoods.output import Output


class NegativeBinomialMixture(Likelihood):
    """With probability sigmoid(mixing) a count comes from the background, else from the foreground.

    The rate of the foreground is that of the background plus exp(location), so it is always above it. Both components have
    the same inverse dispersion.
    """

    output: ClassVar[Output] = Foreground()
    has_dispersion = True
    start_log_dispersion = 1.0
    heads: ClassVar[Mapping[str, float]] = {BACKGROUND: 0.0, MIXING: 0.0}
    support = constraints.nonnegative_integer

    def __init__(self, log_background: Tensor, log_above: Tensor, mixing: Tensor, log_theta: Tensor) -> None:
        log_background, log_above, self.mixing = torch.broadcast_tensors(log_background, log_above, mixing)
        self.background = NegativeBinomial(log_background, log_theta)
        self.foreground = NegativeBinomial(torch.logaddexp(log_background, log_above), log_theta)
        super().__init__(self.background.batch_shape)

    @classmethod
    def _of(cls, background: NegativeBinomial, foreground: NegativeBinomial, mixing: Tensor) -> NegativeBinomialMixture:
        made = cls.__new__(cls)
        made.background, made.foreground, made.mixing = background, foreground, mixing
        Likelihood.__init__(made, background.batch_shape)
        return made

    @classmethod
    def from_decoded(cls, decoded: Decoded) -> NegativeBinomialMixture:
        assert decoded.log_dispersion is not None  # noqa: S101 - the decoder builds what the likelihood needs
        heads = decoded.heads
        return cls(heads[BACKGROUND], decoded.location_ng, heads[MIXING], decoded.log_dispersion)

    @classmethod
    def overdispersion(cls, log_dispersion: Tensor) -> Tensor:
        return NegativeBinomial.overdispersion(log_dispersion)

    def _mixed(self, of_background: Tensor, of_foreground: Tensor) -> Tensor:
        return torch.sigmoid(self.mixing) * of_background + torch.sigmoid(-self.mixing) * of_foreground

    def foreground_probability(self, value: Tensor) -> Tensor:
        """Compute the probability that a count comes from the foreground."""
        return torch.sigmoid(self.foreground.log_prob(value) - self.background.log_prob(value) - self.mixing)

    @property
    def mean(self) -> Tensor:
        return self._mixed(self.background.mean, self.foreground.mean)

    @property
    def variance(self) -> Tensor:
        between = torch.sigmoid(self.mixing) * torch.sigmoid(-self.mixing)
        squared = (self.foreground.mean - self.background.mean).square()
        return self._mixed(self.background.variance, self.foreground.variance) + between * squared

    @property
    def zero_probability(self) -> Tensor:
        return self._mixed(self.background.zero_probability, self.foreground.zero_probability)

    @property
    def log_rate(self) -> Tensor:
        return self.mean.log()

    def expected_log1p(self, log_library_n1: Tensor) -> Tensor:
        """Compute E[log1p X]; the size factor does not enter."""
        nothing = torch.zeros_like(log_library_n1)
        return self._mixed(self.background.expected_log1p(nothing), self.foreground.expected_log1p(nothing))

    def expected_scaled_log1p(self, scale_n1: Tensor) -> Tensor:
        parts = (part.expected_scaled_log1p(scale_n1) for part in (self.background, self.foreground))
        return self._mixed(*parts)

    def at(self, *index: Tensor | slice) -> NegativeBinomialMixture:
        return self._of(self.background.at(*index), self.foreground.at(*index), self.mixing[index])

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        mixing = self.mixing.double()
        low, high = torch.sigmoid(mixing), torch.sigmoid(-mixing)
        below, upto = zip(self.background.steps(value), self.foreground.steps(value), strict=True)
        first, second = (low * a + high * b for a, b in (below, upto))
        return first, second

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.logaddexp(
            self.background.log_prob(value) + F.logsigmoid(self.mixing),
            self.foreground.log_prob(value) + F.logsigmoid(-self.mixing),
        )

    def draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        mixing = self.mixing.expand(shape)
        uniform = torch.rand(shape, generator=generator, dtype=mixing.dtype, device=mixing.device)
        # one draw of each cell and protein: the rate is chosen first
        log_mean = torch.where(
            uniform < torch.sigmoid(mixing),
            self.background.log_mean.expand(shape),
            self.foreground.log_mean.expand(shape),
        )
        return NegativeBinomial(log_mean, self.background.log_theta.expand(shape)).draw(shape, generator)
