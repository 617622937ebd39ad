"""What a prior of z is, and the normal distributions that encoders speak in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from vxpress.core.config import PriorConfig

if TYPE_CHECKING:
    from vxpress.core.counts import Cells
    from vxpress.core.vae import VAE

# draws from which the variance of a prior without a closed form is estimated
VARIANCE_DRAWS = 2048


@dataclass(frozen=True)
class DiagonalNormal:
    """Independent normal distributions, one per cell and dimension: what an encoder says.  As torch's Normal, without its checks."""

    loc: Tensor
    scale: Tensor

    def rsample(self, eps: Tensor) -> Tensor:
        """Loc + scale * eps, differentiable."""
        return torch.addcmul(self.loc, self.scale, eps)

    def draw(self, generator: torch.Generator) -> Tensor:
        """A draw of each, (n, d), with noise of a generator on the same device."""
        return self.rsample(torch.empty_like(self.loc).normal_(generator=generator))

    def __getitem__(self, rows: Tensor | slice) -> DiagonalNormal:
        return DiagonalNormal(self.loc[rows], self.scale[rows])

    def __len__(self) -> int:
        return len(self.loc)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density, summed over the last axis."""
        return (-0.5 * (((z - self.loc) / self.scale).square() + math.log(2 * math.pi)) - self.scale.log()).sum(-1)


def gaussian_kl(q: DiagonalNormal, loc: Tensor, variance: Tensor) -> Tensor:
    """KL between normal distributions, elementwise: (Kingma & Welling 2014, appendix B)."""
    ratio = q.scale.square() / variance
    return 0.5 * (ratio + (q.loc - loc).square() / variance - 1.0 - ratio.log())


class Prior(nn.Module):
    """p(z), or p(z | condition) where ``config.n_conditions``; nats throughout.

    ``condition_n`` are codes from 0; without them a conditional prior is the mixture over conditions with their shares
    among the cells it was fitted to, ``log_share_c``: a proper density of z.

    A prior says its density in :meth:`conditional_log_prob` and draws in :meth:`conditional_sample`; what concerns
    conditions that are not given stands here.
    """

    analytic: ClassVar[bool] = False
    """Whether :meth:`kl` is exact and per dimension; else it is a one-sample estimate at ``z_nd``, (n, 1)."""
    cheap: ClassVar[bool] = True
    """Whether the density can be had in every step of a training, with its gradient; else :meth:`kl` is of a bound."""
    invertible: ClassVar[bool] = False
    """Whether :meth:`to_base` and :meth:`from_base` map z to draws of N(0, I) and back, without conditions."""

    has_components: ClassVar[bool] = False
    """Whether ``config.n_components`` says anything."""
    alone_components: ClassVar[tuple[int, int]] = (50, 10)
    """Learned alone: components at most, and cells for each of them."""
    capturable: ClassVar[bool] = False
    """Whether a step with it can be captured as a CUDA graph: it waits for no device and draws no noise of its own."""
    n_steps: ClassVar[int] = 0
    learning_rate: ClassVar[float] = 1e-3
    """Steps and peak learning rate of a fit of the prior alone."""

    log_share_c: Tensor

    def __init__(self, config: PriorConfig, n_latent: int) -> None:
        super().__init__()
        self.config, self.n_latent = config, n_latent
        if config.n_conditions:
            self.register_buffer("log_share_c", torch.full((config.n_conditions,), -math.log(config.n_conditions)))

    @classmethod
    def alone(cls, config: PriorConfig) -> PriorConfig:
        """The settings of such a prior that is learned by itself, on a model that stays as it is."""
        return config

    # density and draws

    def log_prob(self, z: Tensor, condition_n: Tensor | None = None) -> Tensor:
        """Log density of points (..., d), with shape (...); ``condition_n`` is broadcast to that shape."""
        if not self.config.n_conditions:
            return self.conditional_log_prob(z, None)
        if condition_n is not None:
            return self.conditional_log_prob(z, condition_n.expand(z.shape[:-1]))
        parts = []
        for c in range(self.config.n_conditions):
            code = torch.full(z.shape[:-1], c, dtype=torch.int64, device=z.device)
            parts.append(self.conditional_log_prob(z, code) + self.log_share_c[c])
        return torch.stack(parts).logsumexp(0)

    def sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None = None) -> Tensor:
        """Draws (n, d), on the device of the generator; without conditions these are drawn by their shares."""
        if self.config.n_conditions and condition_n is None:
            shares = self.log_share_c.exp().to(generator.device)
            condition_n = torch.multinomial(shares, n, replacement=True, generator=generator)
        return self.conditional_sample(n, generator, condition_n if self.config.n_conditions else None)

    def conditional_log_prob(self, z: Tensor, condition_n: Tensor | None) -> Tensor:
        """As :meth:`log_prob`; ``condition_n`` has the shape of the result, and is None in a prior without conditions."""
        raise NotImplementedError

    def conditional_sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None) -> Tensor:
        """As :meth:`sample`; ``condition_n`` (n,) is None in a prior without conditions."""
        raise NotImplementedError

    def to_base(self, z_nd: Tensor) -> Tensor:
        """Where z comes from, (n, d)."""
        raise NotImplementedError

    def from_base(self, base_nd: Tensor) -> Tensor:
        """The way back from :meth:`to_base`."""
        raise NotImplementedError

    def kl(self, q: DiagonalNormal, z_nd: Tensor, condition_n: Tensor | None = None) -> Tensor:
        """KL(q || p) per cell, in columns that sum to it; ``z_nd`` are draws of q, for priors without a closed form."""
        return (q.log_prob(z_nd) - self.log_prob(z_nd, condition_n))[..., None]

    def kl_bound(
        self, q: DiagonalNormal, z_nd: Tensor, generator: torch.Generator, condition_n: Tensor | None = None
    ) -> Tensor:
        """An estimate of an upper bound on KL(q || p), (n,), of priors that are not ``cheap``."""
        raise NotImplementedError

    @torch.no_grad()
    def variance(self) -> Tensor:
        """Variance of every dimension, (d,)."""
        device = next((value.device for value in self.state_dict().values()), torch.device("cpu"))
        generator = torch.Generator(device=device).manual_seed(0)
        return self.sample(VARIANCE_DRAWS, generator).var(0)

    # learning

    def bind(self, model: VAE) -> None:
        """Take note of the model whose prior this is, without making it a part of the prior."""

    def start_from(self, model: VAE, cells: Cells, rows: Tensor, generator: torch.Generator) -> None:
        """Start where a training of the whole model had best start."""

    def start_from_posteriors(self, q: DiagonalNormal, condition_n: Tensor | None, generator: torch.Generator) -> None:
        """Start from the posteriors of training cells, for a fit of the prior alone."""

    def loss(self, z_nd: Tensor, condition_n: Tensor | None, generator: torch.Generator) -> Tensor:
        """What a fit of the prior alone brings down, (n,): by default the negative log density."""
        return -self.log_prob(z_nd, condition_n)

    def set_shares(self, condition_n: Tensor) -> None:
        """The shares of the conditions among these cells."""
        counts = torch.bincount(condition_n, minlength=self.config.n_conditions).double()
        self.log_share_c.copy_((counts / counts.sum()).log())


class StandardisedPrior(Prior):
    """A prior that learns the density of (z - centre) / spread."""

    centre_d: Tensor
    spread_d: Tensor

    def __init__(self, config: PriorConfig, n_latent: int) -> None:
        super().__init__(config, n_latent)
        self.register_buffer("centre_d", torch.zeros(n_latent))
        self.register_buffer("spread_d", torch.ones(n_latent))

    def standardise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised points, and the log of the volume that takes."""
        return (z - self.centre_d) / self.spread_d, -self.spread_d.log().sum()

    @torch.no_grad()
    def start_from_posteriors(self, q: DiagonalNormal, condition_n: Tensor | None, generator: torch.Generator) -> None:
        """Standardise by the moments of the aggregate posterior."""
        self.centre_d.copy_(q.loc.mean(0))
        variance_d = q.scale.square().mean(0) + q.loc.var(0, correction=0)
        self.spread_d.copy_(variance_d.clamp_min(1e-6).sqrt())
