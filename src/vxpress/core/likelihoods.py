"""Likelihoods: the distribution of a cell's counts given the decoder's output.

Each one is a :class:`torch.distributions.Distribution` over cells x genes with ``log_prob``, ``mean``,
``variance`` and ``sample``.  Values are in nats and include all constants, so they compare with scipy and other tools.
A likelihood also declares what it needs from the decoder: whether it has a dispersion, which further heads it has, and
whether its location is a composition.  A new likelihood is one class here and one line in :data:`LIKELIHOODS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from vxpress.core.numerics import (
    count_steps,
    expected_log1p,
    log1mexp,
    negative_binomial_log_prob,
    poisson_log_prob,
    stirling_tail,
)

CP10K = 1e4
MIN_GAUSSIAN_VARIANCE = 1e-3


@dataclass(frozen=True)
class Decoded:
    """Output of the decoder: a location per gene, and the further parameters that the likelihood needs.

    ``location_ng`` is log rho (a log composition) for count distributions, the mean itself for the Gaussian.
    ``log_dispersion`` broadcasts to cells x genes; ``heads`` holds further cells x genes outputs by name.
    """

    location_ng: Tensor
    log_library_n1: Tensor
    log_dispersion: Tensor | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)


class Likelihood(Distribution):
    """Base class of the likelihoods; ``x`` is always a tensor of counts.  Subclasses sample in :meth:`_draw`.

    ``observes`` names the quantity that is distributed; only likelihoods of the same quantity are comparable.
    ``gamma_rate`` is True if counts are Poisson given a gamma-distributed rate with shape theta, so that a count
    updates the rate.
    """

    has_dispersion: ClassVar[bool] = False
    heads: ClassVar[tuple[str, ...]] = ()
    composition: ClassVar[bool] = True
    discrete: ClassVar[bool] = True
    gamma_rate: ClassVar[bool] = False
    scale: ClassVar[str] = "composition"
    observes: ClassVar[str] = "counts"
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, shape: torch.Size) -> None:
        super().__init__(shape, validate_args=False)

    @classmethod
    def from_decoded(cls, decoded: Decoded) -> Likelihood:
        """Build the distribution from the decoder's output."""
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
        """Log mean of the counts before zero inflation or reduction to detection; for compositions only."""
        raise NotImplementedError

    def expected_log1p(self, log_library_n1: Tensor) -> Tensor:
        """Compute E[log1p X] of counts with library ``log_library_n1``.

        This distribution has to be that of cells with one molecule.
        """
        raise NotImplementedError

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
            return self._draw(self._extended_shape(torch.Size(sample_shape)), generator)

    def _draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError


Formula = Callable[..., Tensor]


def _where_counted(at_zero: Tensor, value: Tensor, formula: Formula, *parameters: Tensor) -> Tensor:
    """Return ``at_zero`` where x = 0, and ``formula(x, *parameters)`` where x > 0."""
    form = _where_counted_gathered if value.device.type == "cpu" else _where_counted_selected
    return form(at_zero, value, formula, *parameters)


def _where_counted_gathered(at_zero: Tensor, value: Tensor, formula: Formula, *parameters: Tensor) -> Tensor:
    """Evaluate the formula at the non-zeros only: gamma functions are expensive and most counts are zero."""
    shape = torch.broadcast_shapes(at_zero.shape, value.shape)
    at = torch.nonzero(value.expand(shape).reshape(-1), as_tuple=True)[0]
    x, *at_x = (tensor.expand(shape).reshape(-1)[at] for tensor in (value, *parameters))
    return at_zero.expand(shape).reshape(-1).index_put((at,), formula(x.to(at_zero.dtype), *at_x)).view(shape)


def _where_counted_selected(at_zero: Tensor, value: Tensor, formula: Formula, *parameters: Tensor) -> Tensor:
    """Evaluate the formula everywhere: shapes do not depend on the counts, so there is no wait for a GPU.

    Zeros are replaced by ones first, where formula and gradient are finite: an infinite gradient would pass
    ``torch.where`` as 0 * inf.
    """
    counted = value != 0
    x = torch.where(counted, value, 1.0).to(at_zero.dtype)
    return torch.where(counted, formula(x, *parameters), at_zero)


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

    def at(self, *index: Tensor | slice) -> NegativeBinomial:
        return NegativeBinomial(self.log_mean[index], self.log_theta[index])

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return count_steps(value, self.log_mean, self.log_theta)

    def log_prob(self, value: Tensor) -> Tensor:
        at_zero = -self._theta * torch.log1p((self.log_mean - self.log_theta).exp())
        tail = stirling_tail(self._theta)
        return _where_counted(
            at_zero, value, negative_binomial_log_prob, self.log_mean, self.log_theta, self._theta, tail
        )

    def _draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        # a Poisson draw from a gamma-distributed rate
        theta = self._theta.expand(shape).contiguous()
        gamma = torch._standard_gamma(theta, generator=generator)
        return torch.poisson(gamma / theta * self.mean, generator=generator)


class ZeroInflated(Likelihood):
    """A count distribution with additional zeros: a count is set to zero with probability sigmoid(gate_logits)."""

    heads = ("gate",)
    support = constraints.nonnegative_integer

    def __init__(self, base: Likelihood, gate_logits: Tensor) -> None:
        self.base = base
        self.gate_logits = gate_logits
        super().__init__(torch.broadcast_shapes(base.batch_shape, gate_logits.shape))

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(-self.gate_logits) * self.base.mean

    @property
    def variance(self) -> Tensor:
        open_, gate = torch.sigmoid(-self.gate_logits), torch.sigmoid(self.gate_logits)
        return open_ * (self.base.variance + gate * self.base.mean.square())

    @property
    def zero_probability(self) -> Tensor:
        return torch.sigmoid(self.gate_logits) + torch.sigmoid(-self.gate_logits) * self.base.zero_probability

    @property
    def log_rate(self) -> Tensor:
        return self.base.log_rate

    def expected_log1p(self, log_library_n1: Tensor) -> Tensor:
        return torch.sigmoid(-self.gate_logits) * self.base.expected_log1p(log_library_n1)

    def at(self, *index: Tensor | slice) -> ZeroInflated:
        return ZeroInflated(self.base.at(*index), self.gate_logits.expand(self.batch_shape)[index])

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        gate, (below, upto) = self.gate_logits.double(), self.base.steps(value)
        closed, open_ = torch.sigmoid(gate), torch.sigmoid(-gate)
        return torch.where(value > 0, closed + open_ * below, 0.0), torch.where(value < 0, 0.0, closed + open_ * upto)

    def log_prob(self, value: Tensor) -> Tensor:
        base = self.base.log_prob(value) + F.logsigmoid(-self.gate_logits)
        at_zero = torch.logaddexp(F.logsigmoid(self.gate_logits), base)
        return torch.where(value == 0, at_zero, base)

    def _draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        x = self.base._draw(shape, generator)
        uniform = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)
        return torch.where(uniform < torch.sigmoid(self.gate_logits), 0.0, x)


class ZeroInflatedNegativeBinomial(ZeroInflated):
    """Zero-inflated negative binomial (ZINB), with one dropout logit per cell and gene."""

    has_dispersion = True

    @classmethod
    def from_decoded(cls, decoded: Decoded) -> ZeroInflatedNegativeBinomial:
        return cls(NegativeBinomial.from_decoded(decoded), decoded.heads["gate"])


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

    def at(self, *index: Tensor | slice) -> Poisson:
        return Poisson(self.log_mean[index])

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return count_steps(value, self.log_mean, torch.full_like(self.log_mean, torch.inf))

    def log_prob(self, value: Tensor) -> Tensor:
        return _where_counted(-self.mean, value, poisson_log_prob, self.log_mean)

    def _draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        return torch.poisson(self.mean.expand(shape), generator=generator)


def log_cp10k(x: Tensor, library: Tensor) -> Tensor:
    """Compute log1p(1e4 x / l), the scale of the Gaussian likelihood."""
    return torch.log1p(CP10K * x / library)


class Gaussian(Likelihood):
    """Normal distribution of log1p(1e4 x / l), with one variance per gene of at least 1e-3.

    This is a density of log values, not a probability of counts, so its log likelihood is not comparable with that of a
    count distribution.
    ``log_prob`` takes counts; ``mean``, ``variance`` and ``sample`` are on the log scale.
    """

    has_dispersion = True
    composition = False
    discrete = False
    scale = "log1p_cp10k"
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

    def _draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(shape, generator=generator, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self._variance.sqrt() * noise


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

    def _draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        return torch.bernoulli(self.mean.expand(shape), generator=generator)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "nb": NegativeBinomial,
    "zinb": ZeroInflatedNegativeBinomial,
    "poisson": Poisson,
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
}
