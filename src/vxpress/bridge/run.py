"""A prepared fit, carried out: train, encode, read out, denoise, diagnose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scanpy import logging as logg

from vxpress.bridge.prepare import Prepared
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.counts import Counts
from vxpress.core.covariates import Covariates
from vxpress.core.device import place
from vxpress.core.posterior import ALL_GENES, Draws, Encoded, Genes, encode, expected_expression
from vxpress.core.readout import fit_readout
from vxpress.core.training import Outcome, train
from vxpress.core.vae import VAE, build

DENOISING_DRAWS = 10
DENOISING_SEED = 0


@dataclass(frozen=True)
class Fitted:
    """A trained model, its posterior of every cell, and what happened on the way."""

    model: VAE
    encoded: Encoded
    outcome: Outcome


def run(
    prepared: Prepared,
    model_config: ModelConfig,
    train_config: TrainConfig,
    *,
    rng: np.random.Generator,
    device: torch.device,
    start_from_data: bool,
    progress: bool,
    describe: Callable[[torch.Tensor], str],
) -> Fitted:
    """Build, train and encode; the model comes back on the CPU."""
    init_seed, train_seed, readout_seed = (int(seed) for seed in rng.integers(2**62, size=3))
    model = build(model_config, init_seed).to(device)
    cells = place(prepared.cells, device)
    train_rows = torch.from_numpy(prepared.train_n).to(device)
    validation_rows = torch.from_numpy(prepared.validation_n).to(device)
    if start_from_data:
        model.start_from(cells, train_rows)
    if model_config.latent_library:
        _set_library_prior(model, cells.log_library_n1[train_rows, 0], cells.covariates[train_rows])
    outcome = train(
        model,
        cells,
        train_rows,
        validation_rows,
        train_config,
        seed=train_seed,
        progress=progress,
        describe=describe,
    )
    encoded = encode(model, cells)
    if model_config.n_readout:
        assert prepared.counts.outside is not None  # noqa: S101 - there are genes to read out
        outside = place(replace(prepared.cells, counts=Counts.from_scipy(prepared.counts.outside)), device).counts
        mean_nd = torch.from_numpy(encoded.mean_nd).to(device)
        logg.info(f"    reading out {model_config.n_readout} genes outside the model")
        fit_readout(model, cells, outside, mean_nd, train_rows, validation_rows, seed=readout_seed)
    return Fitted(model.cpu(), encoded, outcome)


def _set_library_prior(model: VAE, log_library_n: torch.Tensor, covariates: Covariates) -> None:
    """Log-normal prior of the library: mean and variance of its log per batch (Lopez et al. 2018)."""
    code = covariates.categorical_nk[:, 0] if model.config.has_batch else torch.zeros_like(log_library_n).long()
    for b in range(model.config.n_batches):
        values = log_library_n[code == b]
        values = values if len(values) > 1 else log_library_n
        model.library_log_mean_b[b] = values.mean()
        model.library_log_var_b[b] = values.var().clamp_min(1e-3)


def denoised_matrix(
    model: VAE,
    mean_nd: np.ndarray,
    var_nd: np.ndarray,
    covariates: Covariates,
    *,
    modelled_g: np.ndarray,
    batches: tuple[int, ...],
    target_sum: float,
    n_draws: int = DENOISING_DRAWS,
    seed: int = DENOISING_SEED,
    genes: np.ndarray | None = None,
) -> np.ndarray:
    """Denoised expression, float32 (n, all genes) or (n, ``genes``); NaN where a gene has no readout.

    ``genes`` are positions among all genes of the fit; the other genes take no memory per cell.
    """
    wanted = np.arange(len(modelled_g)) if genes is None else genes
    # where each gene lies among those of its own kind
    rank_g = np.where(modelled_g, np.cumsum(modelled_g), np.cumsum(~modelled_g)) - 1
    to_inside, to_outside = np.flatnonzero(modelled_g[wanted]), np.flatnonzero(~modelled_g[wanted])
    chosen = ALL_GENES
    if genes is not None:
        chosen = Genes(*(torch.from_numpy(rank_g[wanted[to]]) for to in (to_inside, to_outside)))
    out = np.empty((len(mean_nd), len(wanted)), dtype=np.float32)
    scale = np.float32(target_sum if model.decoder.law.composition else 1.0)
    draws = Draws(n_draws, batches or (None,), seed)
    parts = expected_expression(model, torch.from_numpy(mean_nd), torch.from_numpy(var_nd), covariates, draws, chosen)
    for rows, inside, outside in parts:
        if not len(to_outside):
            np.multiply(inside.numpy(), scale, out=out[rows])
            continue
        out[rows, to_inside] = inside.numpy() * scale
        out[rows, to_outside] = np.nan if outside is None else outside.numpy() * scale
    return out
