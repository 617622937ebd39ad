"""Amortisation gap and inference gap of the encoder (Cremer et al. 2018).

The ELBO of a cell is below log p(x) for two reasons: q(z | x) is a normal distribution with independent dimensions, and
one network computes it for all cells. The second part is measured by optimising q of each cell, with the decoder fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vxpress.core.blocks import Z
from vxpress.core.data import Batch, Source, walk
from vxpress.core.inference.importance import MAX_ROWS, MIN_ROWS, PASS_ENTRIES, cell_proposals, importance_bound
from vxpress.core.model import VAE
from vxpress.core.normal import DiagonalNormal
from vxpress.core.objectives import total
from vxpress.core.priors import Prior
from vxpress.core.whole_import import import_for_optimizers

# steps of Adam per cell, and its learning rate, which decays to 0 as half a cosine
STEPS, RATE = 100, 0.05
# number of noise draws for the ELBO before and after (the same for both), and samples of the IWAE
N_COMPARED, N_SAMPLES = 20, 100


Divergence = Callable[[DiagonalNormal, Tensor], Tensor]
Terms = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Gaps:
    """ELBO and divergence of the encoder's q and of the refined q, and the IWAE, in nats per cell, float64 (n,)."""

    elbo_n: np.ndarray
    kl_n: np.ndarray
    refined_elbo_n: np.ndarray
    refined_kl_n: np.ndarray
    iwae_n: np.ndarray

    @property
    def amortisation(self) -> float:
        """Mean over cells of ELBO(refined q) - ELBO(encoder's q)."""
        return float((self.refined_elbo_n - self.elbo_n).mean())

    @property
    def inference(self) -> float:
        """Mean over cells of IWAE - ELBO."""
        return float((self.iwae_n - self.elbo_n).mean())


def gaps(model: VAE, cells: Source, *, seed: int, n_steps: int = STEPS) -> Gaps:
    """Compute the gaps of every cell of ``cells``, which should be few.

    Only q(z | x) is optimised; other latent blocks keep the posterior of their encoder.
    """
    model.eval()
    rows_per_pass = max(MIN_ROWS, min(MAX_ROWS, PASS_ENTRIES // model.config.n_genes))
    wanted = [p for p in model.parameters() if p.requires_grad]
    for p in wanted:
        p.requires_grad = False
    try:
        parts = []
        for part, batch in walk(cells, size=rows_per_pass, stage="refining posteriors"):
            generator = torch.Generator().manual_seed(seed + part.start)
            parts.append(_refined(model, batch, generator, n_steps))
    finally:
        for p in wanted:
            p.requires_grad = True
    iwae = importance_bound(
        cell_proposals(model, cells), N_SAMPLES, rows_per_pass=rows_per_pass, seed=seed, device=cells.device
    )
    elbo, kl, refined, refined_kl = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Gaps(elbo, kl, refined, refined_kl, iwae.log_likelihood_n)


def _refined(
    model: VAE, batch: Batch, generator: torch.Generator, n_steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compute ELBO and divergence of some cells before and after optimising q(z | x) of each cell."""
    with torch.no_grad():
        encoded = model.posterior(batch)
    q, prior = encoded[Z], model.prior

    def noise() -> dict[str, Tensor]:
        return encoded.noise(lambda like: torch.randn(like.shape, generator=generator).to(like.device))

    def terms(refined: DiagonalNormal, eps: dict[str, Tensor], divergence: Divergence) -> Terms:
        point = encoded.replaced(**{Z: refined}).at(eps)
        return total(model.log_likelihood(point, batch)), divergence(refined, point[Z])

    # a bound gets new noise in every step: a posterior would adapt to fixed noise
    step_noise = torch.Generator(device=q.loc.device).manual_seed(generator.initial_seed())

    def to_descend(posterior: DiagonalNormal, z_nd: Tensor) -> Tensor:
        return prior.kl(posterior, z_nd).sum(-1) if prior.cheap else prior.kl_bound(posterior, z_nd, step_noise)

    def to_report(posterior: DiagonalNormal, z_nd: Tensor) -> Tensor:
        return (prior.kl(posterior, z_nd) if prior.cheap else Prior.kl(prior, posterior, z_nd)).sum(-1)

    loc, log_scale = q.loc.clone().requires_grad_(), q.scale.log().requires_grad_()
    import_for_optimizers()
    optimizer = torch.optim.Adam([loc, log_scale], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(n_steps):
        optimizer.zero_grad()
        likelihood_n, kl_n = terms(DiagonalNormal(loc, log_scale.exp()), noise(), to_descend)
        (kl_n - likelihood_n).sum().backward()
        optimizer.step()
        schedule.step()
    after = DiagonalNormal(loc.detach(), log_scale.detach().exp())
    sums = torch.zeros(4, len(batch), dtype=torch.float64, device=q.loc.device)
    others = {name: block for name, block in model.blocks.items() if name != Z}
    with torch.no_grad():
        for _ in range(N_COMPARED):
            eps = noise()
            for at, posterior in ((0, q), (2, after)):
                likelihood_n, kl_n = terms(posterior, eps, to_report)
                sums[at] += (likelihood_n - kl_n).double()
                sums[at + 1] += kl_n.double()
        elbo, kl, refined, refined_kl = (part.cpu().numpy() for part in sums / N_COMPARED)
        # the other blocks keep their q, so their divergence is the same before and after
        for name, block in others.items():
            further = block.mean_kl(encoded[name], batch.covariates, N_COMPARED, generator).double().cpu().numpy()
            elbo, refined = elbo - further, refined - further
    return elbo, kl, refined, refined_kl
