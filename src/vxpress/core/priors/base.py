"""What a prior of z is, and the normal laws that encoders speak in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vxpress.core.config import PriorConfig


@dataclass(frozen=True)
class DiagonalNormal:
    """Independent normal laws, one per cell and dimension: what an encoder says.  As torch's Normal, without its checks."""

    loc: Tensor
    scale: Tensor

    def rsample(self, eps: Tensor) -> Tensor:
        """Loc + scale * eps, differentiable."""
        return torch.addcmul(self.loc, self.scale, eps)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density, summed over the last axis."""
        return (-0.5 * (((z - self.loc) / self.scale).square() + math.log(2 * math.pi)) - self.scale.log()).sum(-1)


def gaussian_kl(q: DiagonalNormal, loc: Tensor, variance: Tensor) -> Tensor:
    """KL between normal laws, elementwise: (Kingma & Welling 2014, appendix B)."""
    ratio = q.scale.square() / variance
    return 0.5 * (ratio + (q.loc - loc).square() / variance - 1.0 - ratio.log())


class Prior(nn.Module):
    """p(z), or p(z | condition) where ``config.n_conditions``; nats throughout.

    ``condition_n`` are codes from 0; without them the conditional prior is that of a cell whose condition is unknown.
    """

    analytic: ClassVar[bool] = False
    """Whether :meth:`kl` is exact and per dimension; else it is a one-sample estimate at ``z_nd``, (n, 1)."""

    def __init__(self, config: PriorConfig, n_latent: int) -> None:
        super().__init__()
        self.config, self.n_latent = config, n_latent

    def log_prob(self, z: Tensor, condition_n: Tensor | None = None) -> Tensor:
        """Log density of points (..., d), with shape (...)."""
        raise NotImplementedError

    def kl(self, q: DiagonalNormal, z_nd: Tensor, condition_n: Tensor | None = None) -> Tensor:
        """KL(q || p) per cell, in columns that sum to it; ``z_nd`` are draws of q, for priors without a closed form."""
        return (q.log_prob(z_nd) - self.log_prob(z_nd, condition_n))[..., None]

    def sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None = None) -> Tensor:
        """Draws (n, d)."""
        raise NotImplementedError
