"""What a trained model can be asked, for all cells, in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vxpress.core.counts import Cells
from vxpress.core.covariates import Covariates
from vxpress.core.vae import VAE

CHUNK = 1024


@dataclass(frozen=True)
class Encoded:
    """Posterior mean and variance of z, float32 (n, d), and of a latent log library its mean (n,), or None."""

    mean_nd: np.ndarray
    var_nd: np.ndarray
    log_library_n: np.ndarray | None = None


@torch.no_grad()
def encode(model: VAE, cells: Cells) -> Encoded:
    """Posterior of every cell."""
    model.eval()
    n, device = len(cells), cells.log_library_n1.device
    mean_nd = np.empty((n, model.config.n_latent), dtype=np.float32)
    var_nd = np.empty_like(mean_nd)
    log_library_n = np.empty(n, dtype=np.float32) if model.config.latent_library else None
    for start in range(0, n, CHUNK):
        rows = torch.arange(start, min(start + CHUNK, n), device=device)
        part = slice(start, start + CHUNK)
        batch = cells.batch(rows)
        q = model.posterior(batch)
        mean_nd[part], var_nd[part] = q.loc.cpu().numpy(), q.scale.square().cpu().numpy()
        if log_library_n is not None:
            log_library_n[part] = model.library_posterior(batch).loc.squeeze(-1).cpu().numpy()
    return Encoded(mean_nd, var_nd, log_library_n)


@dataclass(frozen=True)
class Draws:
    """Which posterior draws are decoded: ``n`` per cell, dealt out over ``batches`` (None: the cell's own)."""

    n: int
    batches: Sequence[int | None]
    seed: int

    def per_cell(self) -> list[int | None]:
        """The batch that each draw is decoded under; every batch is met equally often."""
        return [batch for batch in self.batches for _ in range(max(1, -(-self.n // len(self.batches))))]


@torch.no_grad()
def expected_expression(
    model: VAE, mean_nd: Tensor, var_nd: Tensor, covariates: Covariates, draws: Draws
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """E_q[rho] in chunks of cells: rows, modelled genes (n, g), and the genes read out beside them, or None.

    For the Gaussian law, whose location is no composition, the expected location instead.
    """
    model.eval()
    generator = torch.Generator().manual_seed(draws.seed)
    plan = draws.per_cell()
    for start in range(0, len(mean_nd), CHUNK):
        part = slice(start, min(start + CHUNK, len(mean_nd)))
        rows = torch.arange(part.start, part.stop, device=mean_nd.device)
        own, sd_nd = covariates[rows], var_nd[part].sqrt()
        inside, outside = torch.zeros(()), None
        for code in plan:
            eps_nd = torch.randn(sd_nd.shape, generator=generator).to(mean_nd.device)
            here = own if code is None else own.with_batch(code)
            rho, out = _expression(model, mean_nd[part] + sd_nd * eps_nd, here)
            inside = inside + rho
            if out is not None:
                outside = out if outside is None else outside + out
        yield part, inside / len(plan), None if outside is None else outside / len(plan)


def _expression(model: VAE, z_nd: Tensor, covariates: Covariates) -> tuple[Tensor, Tensor | None]:
    decoder = model.decoder
    f_nf = decoder.features(z_nd, model.conditioner(covariates))
    location, log_rest = decoder.locate(f_nf)
    readout = None if decoder.readout is None else decoder.readout(f_nf)
    if not decoder.law.composition:
        return location, readout
    if readout is None:
        return location.exp(), None
    outside = model.outside_share * F.softmax(readout, dim=-1)
    if log_rest is None:
        return location.exp() * (1.0 - model.outside_share), outside
    return location.exp(), log_rest.exp() * outside
