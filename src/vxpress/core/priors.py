"""What is believed of z before a cell is seen.  A new prior is one class and one line in :data:`PRIORS`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Normal


class StandardNormal(nn.Module):
    """z ~ N(0, I), with the divergence in closed form."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density, summed over the latent dimensions."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def kl(self, q: Normal) -> Tensor:
        """KL(q || p) per cell and dimension, in nats."""
        return gaussian_kl(q, torch.zeros_like(q.loc), torch.ones_like(q.loc))


def gaussian_kl(q: Normal, loc: Tensor, variance: Tensor) -> Tensor:
    """KL between normal laws, elementwise: (Kingma & Welling 2014, appendix B)."""
    ratio = q.scale.square() / variance
    return 0.5 * (ratio + (q.loc - loc).square() / variance - 1.0 - ratio.log())


PRIORS: dict[str, type[StandardNormal]] = {"normal": StandardNormal}
