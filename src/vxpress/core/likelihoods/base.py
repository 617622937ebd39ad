"""Likelihoods: the distribution of a cell's counts given the decoder's output.

Each one is a :class:`torch.distributions.Distribution` over cells x genes with ``log_prob``, ``mean``,
``variance`` and ``sample``.  Values are in nats and include all constants, so they compare with scipy and other tools.
A likelihood also declares what it needs from the decoder: whether it has a dispersion, and which further heads. Its
:class:`~vxpress.core.likelihoods.output.Output` decides what the location means, and all that follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from vxpress.core.likelihoods.cumulative import expected_by_steps
from vxpress.core.likelihoods.output import Output
from vxpress.core.likelihoods.shares import Shares


@dataclass(frozen=True)
class Decoded:
    """Output of the decoder: a location per gene, and the further parameters that the likelihood needs.

    ``location_ng`` is what the output of the likelihood makes of the location layer: log rho, the log share of each gene,
    for count distributions, and the mean itself for the Gaussian.
    ``log_dispersion`` broadcasts to cells x genes; ``heads`` holds further cells x genes outputs by name.
    """

    location_ng: Tensor
    log_library_n1: Tensor
    log_dispersion: Tensor | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)


class Likelihood(Distribution):
    """Base class of the likelihoods; ``x`` is always a tensor of counts.

    Subclasses define every method and property that raises ``NotImplementedError`` here (:attr:`log_rate` only for an
    output of shares), and ``log_prob``, ``mean`` and ``variance`` of torch's distributions.

    ``output`` decides what the location of the decoder means. ``has_dispersion`` asks for one more parameter, per gene or
    as the settings say, which starts at ``start_log_dispersion``. ``heads`` names further outputs per cell and gene, with
    the value of each at the start.
    ``observes`` names the quantity that is distributed; only likelihoods of the same quantity are comparable.
    ``gamma_rate`` is True if a count updates the rate of its gene, see :meth:`rate_update`.
    """

    output: ClassVar[Output] = Shares()
    has_dispersion: ClassVar[bool] = False
    start_log_dispersion: ClassVar[float] = 0.0
    heads: ClassVar[Mapping[str, float]] = {}
    discrete: ClassVar[bool] = True
    gamma_rate: ClassVar[bool] = False
    observes: ClassVar[str] = "counts"
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, shape: torch.Size) -> None:
        super().__init__(shape, validate_args=False)

    @classmethod
    def from_decoded(cls, decoded: Decoded) -> Likelihood:
        """Build the distribution from the decoder's output."""
        raise NotImplementedError

    @classmethod
    def log_dispersion_from(cls, variance_g: Tensor) -> Tensor:
        """Compute log dispersions at the start from the variances of levels, (genes,); for outputs of levels."""
        return torch.full_like(variance_g, cls.start_log_dispersion)

    @classmethod
    def overdispersion(cls, log_dispersion: Tensor) -> Tensor:
        """Compute the variance of counts beyond that of a Poisson distribution, in units of their squared mean.

        It is 0 for likelihoods without a dispersion.
        """
        return torch.zeros_like(log_dispersion)

    @classmethod
    def rate_update(cls, x: Tensor, mean: Tensor, log_dispersion: Tensor) -> Tensor:
        """Compute E[rate | x] / E[rate], if ``gamma_rate`` is True: counts x with this mean are Poisson given a rate."""
        raise NotImplementedError

    def observe(self, x: Tensor) -> Tensor:
        """Compute from counts the quantity that is distributed."""
        return x

    @property
    def zero_probability(self) -> Tensor:
        """Probability of a zero; 0 for a density."""
        raise NotImplementedError

    @property
    def log_rate(self) -> Tensor:
        """Log mean of the counts before zero inflation or reduction to detection; for outputs of shares."""
        raise NotImplementedError

    def expected_log1p(self, log_library_n1: Tensor) -> Tensor:
        """Compute E[log1p X] of counts with library ``log_library_n1``.

        This distribution has to be that of cells with one molecule.
        """
        raise NotImplementedError

    def expected_scaled_log1p(self, scale_n1: Tensor) -> Tensor:
        """Compute E[log1p(c X)] for factors c of every cell, (n, 1): the mean of normalised, log-transformed counts.

        This sums over the steps of the distribution function; subclasses may have a shorter way.
        """
        return expected_by_steps(self, scale_n1)

    def at(self, *index: Tensor | slice) -> Likelihood:
        """Return the distribution of some entries, selected as in ``x[index]``."""
        raise NotImplementedError

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Compute P(X < ``value``) and P(X <= ``value``) in float64; not differentiable.

        ``value`` is on the scale of :meth:`observe`.
        """
        raise NotImplementedError

    def sample(
        self,
        sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size(),
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Sample the quantity of :meth:`observe`, ``sample_shape`` + cells x genes, from ``generator`` if given."""
        with torch.no_grad():
            return self.draw(self._extended_shape(torch.Size(sample_shape)), generator)

    def draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        """Draw values of the quantity of :meth:`observe`; called by :meth:`sample`."""
        raise NotImplementedError
