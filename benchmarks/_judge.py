"""Evaluate every model in the same way: per-cell ELBO and importance-weighted bound of cells that no fit has seen.

A model is given by two functions, its posterior and its decoder. The likelihood is computed here, independently of the
packages, in float64 with all constants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

Posterior = Callable[[np.ndarray], tuple[torch.Tensor, torch.Tensor]]
Decoder = Callable[[torch.Tensor, np.ndarray], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class Judgement:
    """Scores in nats per test cell (higher is better) and effective sample sizes of the importance samples."""

    elbo_n: np.ndarray
    iwae_n: np.ndarray
    ess_n: np.ndarray


def zinb_log_prob(
    x: torch.Tensor, mean: torch.Tensor, theta: torch.Tensor, gate_logits: torch.Tensor | None
) -> torch.Tensor:
    """Compute log NB(x; mean, theta), or log ZINB with a gate, term by term as in a textbook."""
    log_total = torch.log(theta + mean)
    nb = (
        torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
        + theta * (torch.log(theta) - log_total)
        + torch.xlogy(x, mean)
        - x * log_total
    )
    if gate_logits is None:
        return nb
    log_gate, log_open = -torch.nn.functional.softplus(-gate_logits), -torch.nn.functional.softplus(gate_logits)
    return torch.where(x == 0, torch.logaddexp(log_gate, log_open + nb), log_open + nb)


@torch.no_grad()
def judge(
    counts, posterior: Posterior, decoder: Decoder, *, n_samples: int = 100, seed: int = 0, chunk: int = 64
) -> Judgement:
    """Score every row of the sparse matrix ``counts`` (n_cells x n_genes).

    ``posterior(rows)`` gives mean and standard deviation of q(z|x), each (len(rows), d);
    ``decoder(z, rows)`` with z (n_samples, len(rows), d) gives mean, theta and gate logits broadcastable to
    (n_samples, len(rows), n_genes).
    """
    generator = torch.Generator().manual_seed(seed)
    elbo, iwae, ess = [], [], []
    for start in range(0, counts.shape[0], chunk):
        rows = np.arange(start, min(start + chunk, counts.shape[0]))
        x = torch.from_numpy(np.asarray(counts[rows].todense(), dtype=np.float64))
        loc, scale = (part.double() for part in posterior(rows))
        q = torch.distributions.Normal(loc, scale)
        terms = []
        for _ in range(n_samples // 10):
            z = loc + scale * torch.randn((10, *loc.shape), generator=generator, dtype=torch.float64)
            mean, theta, gate = (None if part is None else part.double() for part in decoder(z.float(), rows))
            reconstruction = zinb_log_prob(x, mean, theta, gate).sum(-1)
            terms.append(
                reconstruction + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z).sum(-1)
            )
        log_weight = torch.cat(terms)
        elbo.append(log_weight.mean(0))
        iwae.append(torch.logsumexp(log_weight, 0) - np.log(log_weight.shape[0]))
        ess.append(torch.exp(2 * torch.logsumexp(log_weight, 0) - torch.logsumexp(2 * log_weight, 0)))
    return Judgement(*(torch.cat(part).numpy() for part in (elbo, iwae, ess)))
