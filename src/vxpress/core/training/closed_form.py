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
from vxpress.core.bodies import MLPBody, join
from vxpress.core.config import TrainConfig
from vxpress.core.data import Batch, Source
from vxpress.core.gradients import GradientSink, hand_over
from vxpress.core.kernels import latent_rows
from vxpress.core.kernels.count_likelihood import CountLikelihood
from vxpress.core.kernels.hidden_layer import Norm, NormReluDropout
from vxpress.core.kernels.input_layer import InputProduct
from vxpress.core.model import VAE
from vxpress.core.networks import MAX_LOG_VARIANCE, MIN_POSTERIOR_VARIANCE
from vxpress.core.noise import Noise
from vxpress.core.perturbations import OUTPUT_SCALE
from vxpress.core.priors import StandardNormal


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

    It is built once per training, after the optimizer, because it writes to the optimizer's memory.
    """

    def __init__(self, model: VAE, noise: Noise) -> None:
        self.model, self.noise = model, noise
        encoder, decoder = model.encoder, model.decoder
        self.first = encoder.first
        self.heads = encoder.mean, encoder.log_variance
        body = cast("MLPBody", decoder.body)
        self.into = cast("nn.Linear", body.linears[0])
        self.norm_in, self.norm_out = (_Layer(cast("Norm", b.norms[0])) for b in (encoder.body, body))
        self.bounds = np.float32(MAX_LOG_VARIANCE), np.float32(MIN_POSTERIOR_VARIANCE)

    @torch.no_grad()
    def __call__(self, batch: Batch, kl_weight: float) -> tuple[float, float, Tensor]:
        """Return the sums over cells of reconstruction and KL of z, and the mean loss."""
        model, config, n = self.model, self.model.config, len(batch.rows)
        d = config.n_latent
        s_nc = model.conditioner(batch.covariates)
        seen = model.thinned(batch, self.noise)
        encoded_nc, shift = model.conditioner.for_encoder(s_nc), model.encoder.shift
        product = InputProduct(seen, self.first.weight, self.first.bias, encoded_nc)
        u_nh = product.forward(ordered=True)
        bits, limit = self.noise.dropout_bits(u_nh, config.dropout)
        h_nh = self.norm_in.forward(u_nh, bits, limit)

        head_weight = torch.cat([head.weight for head in self.heads])
        out = torch.addmm(torch.cat([head.bias for head in self.heads]), h_nh, head_weight.t())
        if shift is not None and encoded_nc is not None:
            out[:, :d] += encoded_nc @ shift.t()
        perturbations = model.conditioner.perturbations
        if perturbations is not None:
            with torch.enable_grad():
                strength_np = cast("Tensor", model.conditioner.strength(batch.covariates))
            shift_nd = perturbations.shift(strength_np)
            out[:, :d] -= shift_nd
        eps, (scale, z, kl) = self.noise.normal_like(out[:, :d]), np.empty((3, n, d), np.float32)
        latent_rows.posterior(out.numpy(), *self.bounds, eps.numpy(), scale, z, kl)
        z_nd = torch.from_numpy(z)
        if perturbations is not None:
            z_nd += shift_nd

        condition = join(z_nd, model.decoder.body_condition(s_nc))
        u_out = torch.addmm(self.into.bias, condition, self.into.weight.t())
        f_nf = features = self.norm_out.forward(u_out, bits[:0], limit)
        if config.condition_output and s_nc is not None:
            f_nf = torch.cat((features, s_nc), dim=-1)
        layers = model.decoder.output_layers(batch.covariates)
        likelihood = CountLikelihood(layers, batch, batch.log_library_n1, training=True)
        value_n = likelihood.forward(f_nf, gradient=True)

        d_all = likelihood.backward_into_sinks(-1.0 / n)
        d_features = d_all[:, : features.shape[1]].contiguous()
        d_u_out = self.norm_out.backward(d_features)
        hand_over_linear(self.into, d_u_out, condition)
        d_z, d_out = d_u_out @ self.into.weight[:, :d], torch.empty_like(out)
        latent_rows.posterior_gradient(
            d_z.numpy(), np.float32(kl_weight / n), out.numpy(), *self.bounds, eps.numpy(), scale, d_out.numpy()
        )
        for head, part in zip(self.heads, (d_out[:, :d], d_out[:, d:]), strict=True):
            hand_over_linear(head, part, h_nh)
        if perturbations is not None:
            d_shift = d_z - d_out[:, :d]
            hand_over(perturbations.embedding, strength_np.detach().t() @ d_shift)
            if strength_np.requires_grad:
                d_strength = d_shift @ perturbations.embedding.t()
                if config.condition_output:
                    columns = model.conditioner.perturbation_columns()
                    d_strength += OUTPUT_SCALE * d_all[:, features.shape[1] :][:, columns]
                torch.autograd.backward(strength_np, d_strength)
        if shift is not None and encoded_nc is not None:
            hand_over(shift, d_out[:, :d].t() @ encoded_nc)
        d_u = self.norm_in.backward(d_out @ head_weight)
        product.weight_gradient(d_u)
        if self.first.bias.requires_grad:
            hand_over(self.first.bias, d_u.sum(0))

        reconstruction, divergence = value_n.sum(), kl.sum(dtype=np.float64)
        loss = (kl_weight * divergence - reconstruction) / n
        return float(reconstruction), float(divergence), torch.tensor(loss)


def hand_over_linear(layer: nn.Linear, d_out: Tensor, x: Tensor) -> None:
    """Write the gradients of a small linear layer to the optimizer's memory."""
    hand_over(layer.weight, d_out.t() @ x)
    if layer.bias.requires_grad:
        hand_over(layer.bias, d_out.sum(0))


class _Layer:
    """Norm, ReLU and dropout of a hidden layer; the gradients of the norm go to the optimizer's memory."""

    def __init__(self, norm: Norm) -> None:
        self.layer = NormReluDropout(norm)
        # the optimizer clears them after every step
        self.d_gain, self.d_shift = (
            cast("GradientSink", getattr(w, "grad_sink")).gradient.numpy()  # noqa: B009 - an attribute of ours on a tensor
            for w in (norm.weight, norm.bias)
        )

    def forward(self, u: Tensor, bits: np.ndarray, limit: int) -> Tensor:
        self.out = self.layer.forward(u, bits, limit)
        return self.out

    def backward(self, d_out: Tensor) -> Tensor:
        return self.layer.backward(d_out, self.out, self.d_gain, self.d_shift)
