"""What is believed of z before a cell is seen.  A new prior is one class and one line in :data:`PRIORS`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class DiagonalNormal:
    """Independent normal laws, one per cell and dimension: what an encoder says.  As torch's Normal, without its checks."""

    loc: Tensor
    scale: Tensor

    def rsample(self, eps: Tensor) -> Tensor:
        """Loc + scale * eps, differentiable."""
        return torch.addcmul(self.loc, self.scale, eps)


class _StandardNormalKL(torch.autograd.Function):
    """KL(N(loc, scale^2) || N(0, 1)) elementwise, with its gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(loc, scale)
        return torch.addcmul(loc.square(), scale, scale).sub_(1.0).mul_(0.5).sub_(scale.log())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_kl: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = ctx.saved_tensors
        return d_kl * loc, d_kl * (scale - scale.reciprocal())


class StandardNormal(nn.Module):
    """z ~ N(0, I), with the divergence in closed form."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density, summed over the latent dimensions."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def kl(self, q: DiagonalNormal) -> Tensor:
        """KL(q || p) per cell and dimension, in nats."""
        kl: Tensor = _StandardNormalKL.apply(q.loc, q.scale)
        return kl


def gaussian_kl(q: DiagonalNormal, loc: Tensor, variance: Tensor) -> Tensor:
    """KL between normal laws, elementwise: (Kingma & Welling 2014, appendix B)."""
    ratio = q.scale.square() / variance
    return 0.5 * (ratio + (q.loc - loc).square() / variance - 1.0 - ratio.log())


PRIORS: dict[str, type[StandardNormal]] = {"normal": StandardNormal}
