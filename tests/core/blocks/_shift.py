"""Latent blocks that are defined here: a shift that is added to z, the same by draws alone, and a factor of the size factor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import stats
from scipy.special import log_softmax
from torch import Tensor

from vxpress.core.blocks import DecoderInputs, NormalBlock
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells
from vxpress.core.model import VAE, build
from vxpress.core.normal import DiagonalNormal

MakeCells = Callable[..., Cells]
G, VARIANCE, OFFSET = 20, 0.25, 0.5
BASE = ModelConfig(n_genes=G, n_latent=2, n_hidden=16, n_categories=(2,), has_batch=True, decoder="linear")


class Shift(NormalBlock):
    """A number with prior N(OFFSET, VARIANCE), times a learned direction, that is added to z."""

    name = "shift"

    def add_prior(self) -> None:
        self.direction_d = torch.nn.Parameter(torch.linspace(0.5, 1.0, self.config.n_latent))

    def prior(self, covariates: Covariates) -> tuple[Tensor, Tensor]:
        like = self.direction_d.detach()
        return like.new_full((1, 1), OFFSET), like.new_full((1, 1), VARIANCE)

    def enter(self, inputs: DecoderInputs, value: Tensor) -> DecoderInputs:
        return replace(inputs, z_nd=inputs.z_nd + value * self.direction_d)


class Drawn(Shift):
    """The same without a closed form of the divergence."""

    name = "drawn"
    analytic = False  # type: ignore[assignment]

    def kl(self, q: DiagonalNormal, value: Tensor, covariates: Covariates) -> Tensor:
        return (q.log_prob(value) - self.log_prior(value, covariates))[..., None]


class Depth(Shift):
    """A factor of the size factor."""

    name = "depth"

    def enter(self, inputs: DecoderInputs, value: Tensor) -> DecoderInputs:
        return replace(inputs, log_library_n1=inputs.log_library_n1 + value)


def make_config(**settings: Any) -> ModelConfig:
    return replace(BASE, **({"blocks": ("shift",)} | settings))


def informed(config: ModelConfig) -> VAE:
    """A model whose decoder depends on z and whose posteriors differ from the priors."""
    model = build(config, 1).eval()
    with torch.no_grad():
        for block in model.blocks.values():
            block.encoder.log_variance.bias.fill_(-1.0)
    return model


def log_density(model: VAE, x: np.ndarray, library: np.ndarray, shifted: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Compute log p(x | z + shift) with a linear decoder by numpy and scipy."""
    decoder = model.decoder
    weight, bias = (p.detach().double().numpy() for p in (decoder.location.weight, decoder.location.bias))
    theta = decoder.log_dispersion.detach().double().exp().numpy()
    condition = np.eye(2)[batch]
    condition = np.broadcast_to(condition, (*shifted.shape[:-1], 2))
    rho = np.exp(log_softmax(np.concatenate([shifted, condition], -1) @ weight.T + bias, axis=-1))
    return np.asarray(stats.nbinom.logpmf(x, theta, theta / (theta + library * rho)).sum(-1))


def arrays(cells: Cells) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    batch = cells.batch(torch.arange(len(cells)))
    library = batch.log_library_n1.double().exp().numpy()
    return batch.x_ng.numpy(), library, batch.covariates.categorical_nk[:, 0].numpy()


def decoded_shares(model: VAE, cells: Cells, **point: Tensor) -> Tensor:
    """Compute decoded shares from the likelihood at a point."""
    with torch.no_grad():
        return model.likelihood(point, cells.covariates, cells.log_library_n1).mean / cells.log_library_n1.exp()
