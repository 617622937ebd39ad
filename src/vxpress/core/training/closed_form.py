"""Gradient of the plain ELBO without autograd, for the most common model: one hidden layer with a norm, NB or ZINB.

It calls the same compiled functions as the autograd functions of this package, forward and backward.  With small
minibatches, the bookkeeping of autograd takes longer than the arithmetic.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from vxpress.core import rule
from vxpress.core.blocks import Z
from vxpress.core.bodies import MLPBody
from vxpress.core.config import TrainConfig
from vxpress.core.data import Batch, Source
from vxpress.core.gradients import hand_over
from vxpress.core.kernels.count_likelihood import OutputLayers
from vxpress.core.kernels.hidden_layer import Norm
from vxpress.core.kernels.products import COLUMNS
from vxpress.core.kernels.step import Conditions, Networks, StepMemory
from vxpress.core.model import VAE
from vxpress.core.networks import MAX_LOG_VARIANCE, MIN_POSTERIOR_VARIANCE
from vxpress.core.noise import Noise
from vxpress.core.perturbations import OUTPUT_SCALE
from vxpress.core.priors import StandardNormal
from vxpress.core.thinning import Space
from vxpress.core.training.optimizer import Continued


def covers(model: VAE, source: Source, train: TrainConfig) -> bool:
    """Whether a training step with this model, cells and settings can run without autograd.

    Any schedule of the KL weight is supported; steps of the encoder alone are handled by the optimizer.
    """
    config, like = model.config, source.log_library_n1
    return (
        train.objective == "elbo"
        and train.kl_schedule != "capacity"
        and train.free_bits == 0
        and type(model.decoder.body) is MLPBody
        and config.norm in {"batch", "layer"}
        and config.n_layers == 1
        and config.n_hidden % COLUMNS == 0
        and config.covariate_code == "one-hot"
        and type(model) is VAE
        and not model.further
        and model.panels is None
        and tuple(model.blocks) == (Z,)
        and type(model.prior) is StandardNormal
        and rule.sparse_input(like.device, like.dtype)
        and model.decoder.compiled_likelihood(like)
    )


class ClosedForm:
    """Computes the ELBO terms of a minibatch, and writes the gradient of its mean loss to the optimizer's memory.

    With ``optimizer``, the same call takes its step, unless further gradients are added after it. It is built once per training, after the optimizer, because it writes to the optimizer's memory.
    """

    def __init__(self, model: VAE, noise: Noise, optimizer: Continued | None = None) -> None:
        self.model, self.noise = model, noise
        # gradients that are added afterwards come before the optimizer
        alone = model.conditioner.perturbations is None and model.encoder.shift is None
        self.optimizer = optimizer if alone else None
        encoder, body = model.encoder, cast("MLPBody", model.decoder.body)
        self.networks = Networks(
            encoder.first,
            (encoder.mean, encoder.log_variance),
            cast("nn.Linear", body.linears[0]),
            cast("tuple[Norm, Norm]", (encoder.body.norms[0], body.norms[0])),
            (np.float32(MAX_LOG_VARIANCE), np.float32(MIN_POSTERIOR_VARIANCE)),
        )
        self.memory: StepMemory | None = None
        self.space = Space()

    @torch.no_grad()
    def __call__(self, batch: Batch, kl_weight: float) -> tuple[float, float, Tensor]:
        """Return the sums over cells of reconstruction and KL of z, and the mean loss."""
        model, config, n = self.model, self.model.config, len(batch.rows)
        conditioner = model.conditioner
        s_nc = conditioner(batch.covariates)
        encoded_nc, shift = conditioner.for_encoder(s_nc), model.encoder.shift
        seen = model.thinned(batch, self.noise, self.space)
        nothing_nc, no_rows = torch.empty(n, 0), torch.empty(0, config.n_latent)
        bits = self.noise.dropout_bits(torch.empty(n, config.n_hidden), config.dropout)
        eps_nd = self.noise.normal_like(torch.empty(n, config.n_latent))

        add_mean = no_rows if shift is None or encoded_nc is None else encoded_nc @ shift.t()
        add_z, perturbations = no_rows, conditioner.perturbations
        if perturbations is not None:
            with torch.enable_grad():
                strength_np = cast("Tensor", conditioner.strength(batch.covariates))
            add_z = perturbations.shift(strength_np)
            add_mean = add_mean - add_z if len(add_mean) else -add_z
        conditions = Conditions(
            nothing_nc if s_nc is None else s_nc, nothing_nc if encoded_nc is None else encoded_nc, add_mean, add_z
        )
        layers = model.decoder.output_layers(batch.covariates)
        step = self._memory(n, layers)
        if self.optimizer is not None:
            self.optimizer.prepare()
        found = step(batch, seen, conditions, layers.theta_row_n, bits, eps_nd, kl_weight)
        if perturbations is not None:
            d_shift = found.d_z_nd - found.d_mean_nd
            hand_over(perturbations.embedding, strength_np.detach().t() @ d_shift)
            if strength_np.requires_grad:
                d_strength = d_shift @ perturbations.embedding.t()
                if config.condition_output:
                    d_strength += OUTPUT_SCALE * found.d_condition_nc[:, conditioner.perturbation_columns()]
                torch.autograd.backward(strength_np, d_strength)
        if shift is not None and encoded_nc is not None:
            hand_over(shift, found.d_mean_nd.t() @ encoded_nc)
        reconstruction, divergence = found.value_n.sum(), found.kl_nd.sum(dtype=np.float64)
        loss = (kl_weight * divergence - reconstruction) / n
        return float(reconstruction), float(divergence), torch.tensor(loss)

    def _memory(self, n: int, layers: OutputLayers) -> StepMemory:
        """Return memory for ``n`` cells; that of the step before if it fits."""
        if self.memory is None or not self.memory.fits(n, layers):
            width = self.model.conditioner.width
            self.memory = StepMemory(n, self.networks, layers, width, self.optimizer)
        return self.memory
