"""A hidden layer's norm, ReLU and dropout as one autograd function."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vxpress.core.kernels import layer_rows


def norm_relu_dropout(u: Tensor, norm: nn.BatchNorm1d, random: np.ndarray, limit: int) -> Tensor:
    """Compute dropout(relu(batch norm(u))) in training, and update the running mean and variance of ``norm``.

    ``random`` holds 16-bit numbers per unit (n, h); units with a number below ``limit`` are kept. It has no rows if
    there is no dropout.
    """
    y, mean, variance = _NormReluDropout.apply(u, norm.weight, norm.bias, norm.eps, random, limit)
    update_running_statistics(norm, mean, variance, len(u))
    return cast("Tensor", y)


@torch.no_grad()
def update_running_statistics(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, n: int) -> None:
    """Update the running mean and variance of a norm with those of a minibatch, as torch does."""
    momentum = float(norm.momentum or 0.0)
    for running, new in ((norm.running_mean, mean), (norm.running_var, variance.mul_(n / max(1, n - 1)))):
        assert running is not None  # noqa: S101 - these norms keep running statistics
        running.lerp_(new, momentum)


class _NormReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, gain: Tensor, shift: Tensor, eps: float, random: np.ndarray, limit: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        u = u.contiguous()
        out, standard = torch.empty_like(u), torch.empty_like(u)
        mean, variance = torch.empty_like(gain), torch.empty_like(gain)
        scale = np.float32((1 << 16) / limit if len(random) else 1.0)
        inverse_sd = layer_rows.forward(
            u.detach().numpy(),
            gain.detach().numpy(),
            shift.detach().numpy(),
            np.float32(eps),
            random,
            limit,
            scale,
            standard.numpy(),
            out.numpy(),
            mean.numpy(),
            variance.numpy(),
        )
        # saved, not an attribute: an output that refers to its own graph would be freed only by the garbage collector
        ctx.save_for_backward(gain, shift, out)
        ctx.kept = standard, inverse_sd, scale
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gain, shift, out = ctx.saved_tensors
        standard, inverse_sd, scale = ctx.kept
        d_u, d_gain, d_shift = torch.empty_like(out), torch.zeros_like(gain), torch.zeros_like(shift)
        layer_rows.backward(
            d_out.contiguous().numpy(),
            out.numpy(),
            standard.numpy(),
            inverse_sd,
            gain.detach().numpy(),
            scale,
            d_u.numpy(),
            d_gain.numpy(),
            d_shift.numpy(),
        )
        return d_u, d_gain, d_shift, None, None, None
