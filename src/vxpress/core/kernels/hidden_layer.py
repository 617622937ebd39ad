"""A hidden layer's norm, ReLU and dropout with their gradients, also as one autograd function."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vxpress.core.kernels import layer_rows
from vxpress.core.kernels.frames import Plan
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
        n, width = u.shape
        out, self.by_cell = torch.empty_like(u), isinstance(self.norm, nn.LayerNorm)
        frame = self.frame = layer_rows.hidden(n, width, by_cell=self.by_cell)
        frame.update({
            layer_rows.CUTS: np.array([0, n]), layer_rows.U: u.numpy(), layer_rows.GAIN: self.gain, layer_rows.SHIFT: self.shift,
            layer_rows.EPS: self.norm.eps, layer_rows.RANDOM: random, layer_rows.LIMIT: limit,
            layer_rows.FACTOR: BITS / limit if len(random) else 1.0, layer_rows.STANDARD: np.empty(u.shape, np.float32),
            layer_rows.OUT: out.detach().numpy(),
        })  # fmt: skip
        forward = layer_rows.layer_norm if self.by_cell else layer_rows.batch_norm
        Plan([([(forward, frame)], 1)]).run(1)
        if not self.by_cell:
            mean, variance = (torch.from_numpy(frame[slot]) for slot in (layer_rows.MEAN, layer_rows.VARIANCE))
            update_running_statistics(cast("nn.BatchNorm1d", self.norm), mean, variance, n)
        return out

    def backward(self, d_out: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of ``u``, gain and shift; ``out`` is the result of :meth:`forward`."""
        d_u, d_gain, d_shift = torch.empty_like(d_out), torch.empty(1, d_out.shape[1]), torch.empty(1, d_out.shape[1])
        self.frame.update({
            layer_rows.D_OUT: d_out.numpy(), layer_rows.OUT: out.numpy(), layer_rows.D_U: d_u.numpy(),
            layer_rows.D_GAINS: d_gain.numpy(), layer_rows.D_SHIFTS: d_shift.numpy(),
        })  # fmt: skip
        gradient = layer_rows.layer_norm_gradient if self.by_cell else layer_rows.batch_norm_gradient
        Plan([([(gradient, self.frame)], 1)]).run(1)
        return d_u, d_gain[0], d_shift[0]


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
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        (out,) = ctx.saved_tensors
        return *ctx.layer.backward(d_out.contiguous(), out), None, None, None
