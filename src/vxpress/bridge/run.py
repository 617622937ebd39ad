"""A prepared fit, carried out: train, encode, read out."""

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
from vxpress.core.inference.posterior import Encoded, encode
from vxpress.core.readout import fit_readout
from vxpress.core.training import Outcome, train
from vxpress.core.vae import VAE, build


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
