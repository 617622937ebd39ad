"""The divergence from a prior without a closed form, and how well it is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vxpress.core.priors.base import DiagonalNormal, Prior

# points whose density is asked for at once
POINTS = 8192


@dataclass(frozen=True)
class SampledKL:
    """KL(q(z | x) || p(z)) in nats: of each cell, float64 (n,), and its mean, with the standard errors of the sampling.

    Both errors are zero where the divergence is exact; they are NaN with a single draw.
    """

    kl_n: np.ndarray
    se_n: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the cells."""
        return float(self.kl_n.mean())

    @property
    def se(self) -> float:
        """Standard error of that mean, these cells being given: the draws of different cells are independent."""
        return float(np.sqrt(np.square(self.se_n).sum()) / len(self.se_n))


@torch.no_grad()
def sampled_kl(
    prior: Prior, q: DiagonalNormal, n_draws: int, *, seed: int = 0, condition_n: Tensor | None = None
) -> SampledKL:
    """The divergence of posteriors (n, d) from ``prior``: exact where it has a closed form, else from draws."""
    if prior.analytic:
        kl_n = prior.kl(DiagonalNormal(q.loc.double(), q.scale.double()), q.loc.double()).sum(-1).cpu().numpy()
        return SampledKL(kl_n, np.zeros(len(kl_n)))
    ratio_kn = torch.stack(
        [q.log_prob(z_nd) - log_p_n for z_nd, log_p_n in drawn_log_prob(prior, q, n_draws, seed, condition_n)]
    )
    se_n = ratio_kn.std(0) / n_draws**0.5 if n_draws > 1 else torch.full_like(ratio_kn[0], torch.nan)
    return SampledKL(ratio_kn.mean(0).cpu().numpy(), se_n.cpu().numpy())


@torch.no_grad()
def drawn_log_prob(
    prior: Prior, q: DiagonalNormal, n_draws: int, seed: int, condition_n: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """For each draw of posteriors (n, d): the points, and log p(z) there, float64 (n,).

    The points hang on ``seed`` alone, so priors are compared at the same ones.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(n_draws):
        z_nd = q.rsample(torch.randn(q.loc.shape, generator=generator).to(q.loc)).double()
        codes = [None] * (-(-len(z_nd) // POINTS)) if condition_n is None else condition_n.split(POINTS)
        parts = [prior.log_prob(part, code) for part, code in zip(z_nd.split(POINTS), codes, strict=True)]
        found.append((z_nd, torch.cat(parts)))
    return found
