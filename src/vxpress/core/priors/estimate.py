"""Sampled divergence from a prior without a closed form, with its standard error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors.base import Prior

# number of points whose density is computed at once
POINTS = 8192


@dataclass(frozen=True)
class SampledKL:
    """KL(q(z | x) || p(z)) in nats: per cell, float64 (n,), and its mean, with standard errors from sampling.

    Both errors are zero if the divergence is exact, and NaN with a single draw.
    """

    kl_n: np.ndarray
    se_n: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the cells."""
        return float(self.kl_n.mean())

    @property
    def se(self) -> float:
        """Standard error of the mean given these cells: draws of different cells are independent."""
        return float(np.sqrt(np.square(self.se_n).sum()) / len(self.se_n))


@torch.no_grad()
def sampled_kl(
    prior: Prior, q: DiagonalNormal, n_draws: int, *, seed: int = 0, condition_n: Tensor | None = None
) -> SampledKL:
    """Compute the divergence of posteriors (n, d) from ``prior``: exact if it has a closed form, else from draws."""
    if prior.analytic:
        kl_n = prior.kl(DiagonalNormal(q.loc.double(), q.scale.double()), q.loc.double()).sum(-1).cpu().numpy()
        return SampledKL(kl_n, np.zeros(len(kl_n)))
    z_knd, log_p_kn = drawn_log_prob(prior, q, n_draws, seed, condition_n)
    ratio_kn = q.log_prob(z_knd) - log_p_kn
    se_n = ratio_kn.std(0) / n_draws**0.5 if n_draws > 1 else torch.full_like(ratio_kn[0], torch.nan)
    return SampledKL(ratio_kn.mean(0).cpu().numpy(), se_n.cpu().numpy())


@torch.no_grad()
def drawn_log_prob(
    prior: Prior, q: DiagonalNormal, n_draws: int, seed: int, condition_n: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw from posteriors (n, d), float64 (k, n, d), and compute log p(z) of the draws, (k, n).

    The draws depend only on ``seed``, so priors are compared at the same points.
    """
    generator = torch.Generator().manual_seed(seed)
    eps_knd = torch.randn(n_draws, *q.loc.shape, generator=generator).to(q.loc)
    z_knd = q.rsample(eps_knd).double()
    flat = z_knd.flatten(0, 1)
    codes = None if condition_n is None else condition_n.repeat(n_draws)
    parts = [
        prior.log_prob(flat[at : at + POINTS], None if codes is None else codes[at : at + POINTS])
        for at in range(0, len(flat), POINTS)
    ]
    return z_knd, torch.cat(parts).view(z_knd.shape[:-1])
