"""Diagonal normal distributions, which encoders return, and their divergence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DiagonalNormal:
    """Independent normal distributions, one per cell and dimension, as returned by an encoder.

    Like ``torch.distributions.Normal``, without its checks.
    """

    loc: Tensor
    scale: Tensor

    def rsample(self, eps: Tensor) -> Tensor:
        """Compute loc + scale * eps, differentiable."""
        return torch.addcmul(self.loc, self.scale, eps)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw once from each, (n, d), with noise from a generator on the same device."""
        return self.rsample(torch.empty_like(self.loc).normal_(generator=generator))

    def __getitem__(self, rows: Tensor | slice) -> DiagonalNormal:
        return DiagonalNormal(self.loc[rows], self.scale[rows])

    def __len__(self) -> int:
        return len(self.loc)

    def log_prob(self, z: Tensor) -> Tensor:
        """Compute the log density, summed over the last axis."""
        return (-0.5 * (((z - self.loc) / self.scale).square() + math.log(2 * math.pi)) - self.scale.log()).sum(-1)


def gaussian_kl(q: DiagonalNormal, loc: Tensor, variance: Tensor) -> Tensor:
    """Compute the KL divergence between normal distributions, elementwise (Kingma & Welling 2014, appendix B)."""
    ratio = q.scale.square() / variance
    return 0.5 * (ratio + (q.loc - loc).square() / variance - 1.0 - ratio.log())
