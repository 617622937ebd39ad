"""Inverse dispersions of a trained model, fitted anew with everything else left as it is.

A training of few hundred steps moves a log dispersion by what so many steps can move it, and stops on the way: counts of
strongly expressed genes, whose law is far from where they start, stay too noisy.  Given the means each gene's likelihood is
a curve in one number, whose maximum is found here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vxpress.core.counts import Batch, Cells
from vxpress.core.covariates import Covariates
from vxpress.core.vae import VAE

# log theta looked at; beyond the last the law is all but Poisson's
LOWEST, HIGHEST, STEP = -4.0, 7.0, 0.5
# sd of log theta about its trained value, which a gene with hardly a count keeps
PRIOR_SD = 2.0
CHUNK = 256


def has_dispersions(model: VAE) -> bool:
    """Whether there are dispersions that do not hang on z."""
    return model.decoder.law.discrete and hasattr(model.decoder, "log_dispersion")


@torch.no_grad()
def refit_dispersions(model: VAE, cells: Cells, rows: Tensor, *, seed: int) -> Tensor:
    """Log theta that maximise E_q[log p(x | z)] of some cells, with one draw of each posterior, (rows of theta, g).

    The curve is looked at on a grid and its top is read off the parabola through the three highest points.
    """
    model.eval()
    grid = torch.arange(LOWEST, HIGHEST + STEP / 2, STEP)
    trained = model.decoder.log_dispersion.detach()
    curve = torch.zeros(len(grid), *trained.shape, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for part in rows.split(CHUNK):
        batch = cells.batch(part)
        law = model.likelihood(*_drawn(model, batch, generator))
        which_n = model.decoder.dispersion_row(batch.covariates)
        for k, log_theta in enumerate(grid):
            log_p = law.with_dispersion(log_theta.expand(1, 1)).log_prob(batch.x_ng)
            curve[k].index_add_(0, which_n, log_p.double())
    curve -= 0.5 * ((grid[:, None, None] - trained) / PRIOR_SD).square().double()
    top = curve.argmax(0).clamp(1, len(grid) - 2)
    low, mid, high = (curve.gather(0, (top + i)[None])[0] for i in (-1, 0, 1))
    bend = low - 2 * mid + high
    shift = torch.where(bend < 0, 0.5 * (low - high) / bend, torch.zeros_like(bend)).clamp(-1.0, 1.0)
    return (grid[top] + STEP * shift).to(trained.dtype)


@torch.no_grad()
def mean_log_likelihood(model: VAE, cells: Cells, rows: Tensor, seed: int, n_draws: int = 5) -> np.ndarray:
    """E_q[log p(x | z)] of some cells in nats, (n,); models that differ in their law alone see the same draws."""
    model.eval()
    generator, found = torch.Generator().manual_seed(seed), []
    for part in rows.split(CHUNK):
        batch = cells.batch(part)
        total = torch.zeros(len(part), dtype=torch.float64)
        for _ in range(n_draws):
            z_nd, covariates, log_library_n1 = _drawn(model, batch, generator)
            total += model.likelihood(z_nd, covariates, log_library_n1).log_prob(batch.x_ng).double().sum(-1)
        found.append(total / n_draws)
    return torch.cat(found).numpy()


def _drawn(model: VAE, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Covariates, Tensor]:
    """A draw of z, and of the size factor where it is inferred, for a minibatch."""
    q = model.posterior(batch)
    z_nd = q.rsample(torch.randn(q.loc.shape, generator=generator))
    log_library_n1 = batch.log_library_n1
    if model.config.latent_library:
        of_library = model.library_posterior(batch)
        log_library_n1 = of_library.rsample(torch.randn(of_library.loc.shape, generator=generator))
    return z_nd, batch.covariates, log_library_n1
