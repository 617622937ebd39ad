"""Normal log values."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from vxpress.core.likelihoods.base import Decoded, Likelihood
from vxpress.core.likelihoods.levels import CP10K, Levels, log_cp10k
from vxpress.core.likelihoods.output import Output

MIN_GAUSSIAN_VARIANCE = 1e-3


class Gaussian(Likelihood):
    """Normal distribution of log1p(1e4 x / l), with one variance per gene of at least 1e-3.

    This is a density of log values, not a probability of counts, so its log likelihood is not comparable with that of a
    count distribution.
    ``log_prob`` takes counts; ``mean``, ``variance`` and ``sample`` are on the log scale.
    """

    output: ClassVar[Output] = Levels()
    has_dispersion = True
    discrete = False
    observes = "log values"
    support = constraints.real

    def __init__(self, loc: Tensor, variance: Tensor, library: Tensor) -> None:
        self.loc, self._variance = torch.broadcast_tensors(loc, variance)
        self.library = library
        super().__init__(self.loc.shape)

    @classmethod
    def from_decoded(cls, decoded: Decoded) -> Gaussian:
        assert decoded.log_dispersion is not None  # noqa: S101 - the decoder builds what the likelihood needs
        variance = MIN_GAUSSIAN_VARIANCE + decoded.log_dispersion.exp()
        return cls(decoded.location_ng, variance, decoded.log_library_n1.exp())

    @classmethod
    def log_dispersion_from(cls, variance_g: Tensor) -> Tensor:
        return (variance_g - MIN_GAUSSIAN_VARIANCE).clamp_min(1e-4).log()

    def observe(self, x: Tensor) -> Tensor:
        return log_cp10k(x, self.library)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self._variance

    @property
    def zero_probability(self) -> Tensor:
        return torch.zeros_like(self.loc)

    def expected_log1p(self, log_library_n1: Tensor) -> Tensor:
        return torch.log1p(log_library_n1.exp() / CP10K * self.loc.expm1().clamp_min(0.0))

    def at(self, *index: Tensor | slice) -> Gaussian:
        return Gaussian(self.loc[index], self._variance[index], self.library.expand(self.batch_shape)[index])

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        upto = torch.special.ndtr((value.double() - self.loc) / self._variance.double().sqrt())
        return upto, upto

    def log_prob(self, value: Tensor) -> Tensor:
        squared = (self.observe(value) - self.loc).square()
        return -0.5 * (squared / self._variance + self._variance.log() + math.log(2 * math.pi))

    def draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(shape, generator=generator, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self._variance.sqrt() * noise
