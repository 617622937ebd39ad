"""A hidden layer's norm, ReLU and dropout with their gradients, also as one autograd function."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vxpress.core.kernels import layer_rows
from vxpress.core.noise import BITS

Norm = nn.BatchNorm1d | nn.LayerNorm


class NormReluDropout:
    """dropout(relu(norm(u))) of one minibatch in training, and its gradients."""

    def __init__(self, norm: Norm) -> None:
        self.norm = norm
        self.gain, self.shift = norm.weight.detach().numpy(), norm.bias.detach().numpy()

    def forward(self, u: Tensor, random: np.ndarray, limit: int) -> Tensor:
        """Compute the layer of ``u`` (n, h), and update the running mean and variance of a batch norm.

        ``random`` holds 16-bit numbers per unit (n, h); units with a number below ``limit`` are kept. It has no rows if
        there is no dropout.
        """
        out, self.standard = torch.empty_like(u), np.empty(u.shape, np.float32)
        self.factor = np.float32(BITS / limit if len(random) else 1.0)
        args = (
            u.numpy(), self.gain, self.shift, np.float32(self.norm.eps), random, limit, self.factor,
            self.standard, out.numpy(),
        )  # fmt: skip
        if isinstance(self.norm, nn.LayerNorm):
            self.inverse_sd = layer_rows.layer_forward(*args)
        else:
            mean, variance = torch.empty(u.shape[1]), torch.empty(u.shape[1])
            self.inverse_sd = layer_rows.batch_forward(*args, mean.numpy(), variance.numpy())
            update_running_statistics(self.norm, mean, variance, len(u))
        return out

    def backward(self, d_out: Tensor, out: Tensor, d_gain: np.ndarray, d_shift: np.ndarray) -> Tensor:
        """Return the gradient of ``u``, and add those of gain and shift to the given arrays; ``out`` is the result."""
        d_u = torch.empty_like(d_out)
        by_cell = isinstance(self.norm, nn.LayerNorm)
        backward = layer_rows.layer_backward if by_cell else layer_rows.batch_backward
        backward(
            d_out.numpy(), out.numpy(), self.standard, self.inverse_sd, self.gain, self.factor,
            d_u.numpy(), d_gain, d_shift,
        )  # fmt: skip
        return d_u


def norm_relu_dropout(u: Tensor, norm: Norm, random: np.ndarray, limit: int) -> Tensor:
    """Compute :class:`NormReluDropout` for autograd; it can be differentiated once."""
    return cast("Tensor", _NormReluDropout.apply(u, norm.weight, norm.bias, norm, random, limit))


@torch.no_grad()
def update_running_statistics(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, n: int) -> None:
    """Update the running mean and variance of a norm with those of a minibatch, as torch does."""
    momentum = float(norm.momentum or 0.0)
    for running, new in ((norm.running_mean, mean), (norm.running_var, variance.mul_(n / max(1, n - 1)))):
        assert running is not None  # noqa: S101 - these norms keep running statistics
        running.lerp_(new, momentum)


class _NormReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, gain: Tensor, shift: Tensor, norm: Norm, random: np.ndarray, limit: int) -> Tensor:
        ctx.layer = NormReluDropout(norm)
        out: Tensor = ctx.layer.forward(u.detach().contiguous(), random, limit)
        # saved, not an attribute: an output that refers to its own graph would be freed only by the garbage collector
        ctx.save_for_backward(gain, shift, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        gain, shift, out = ctx.saved_tensors
        d_gain, d_shift = torch.zeros_like(gain), torch.zeros_like(shift)
        d_u = ctx.layer.backward(d_out.contiguous(), out, d_gain.numpy(), d_shift.numpy())
        return d_u, d_gain, d_shift, None, None, None
