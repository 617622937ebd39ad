"""NB and ZINB log likelihood of a dense minibatch with its gradient in closed form, in torch operations.

This is the fast implementation for GPUs: shapes do not depend on the data, nothing waits for the device, and autograd
stores only the gradients.  The formulas are those of :mod:`vxpress.core.kernels.count_rows`; counts above zero use the
saddle-point form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vxpress.core.numerics import negative_binomial_log_prob, stirling_tail

# from this theta on, three terms of the series give the difference of digammas to float32 precision
SERIES_FROM = 16.0


def dense_log_likelihood(
    logits_ng: Tensor, log_library_n1: Tensor, log_theta: Tensor, gate_ng: Tensor | None, x_ng: Tensor
) -> Tensor:
    """Compute log p(x | logits, l) per cell, (n,); ``log_theta`` has a row per cell or one for all.

    ``logits_ng`` may have an additional column for the remainder. The result can be differentiated once.
    """
    value: Tensor = _DenseLogLikelihood.apply(logits_ng, log_library_n1, log_theta, gate_ng, x_ng)
    return value


def _digamma_step(x: Tensor, theta: Tensor) -> Tensor:
    """Compute theta (digamma(x + theta) - digamma(theta)), which tends to x as theta grows."""
    small = theta < SERIES_FROM
    near = torch.where(small, theta, SERIES_FROM)
    direct = near * (torch.digamma(x + near) - torch.digamma(near))
    far = torch.where(small, SERIES_FROM, theta)
    n = x + far
    series = far * torch.log1p(x / far) + 0.5 * x / n + (1 / far - far / (n * n)) / 12
    return torch.where(small, direct, series)


class _DenseLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_ng: Tensor, log_library_n1: Tensor, log_theta: Tensor, gate_ng: Tensor | None, x_ng: Tensor
    ) -> Tensor:
        g, theta = x_ng.shape[1], log_theta.exp()
        log_share = F.log_softmax(logits_ng, dim=-1)
        log_mean = log_share[:, :g] + log_library_n1
        mean = log_mean.exp()
        t = mean / theta
        share, at_zero = 1 / (1 + t), -theta * torch.log1p(t)
        counted = x_ng > 0
        x = torch.where(counted, x_ng, 1.0)
        full = negative_binomial_log_prob(x, log_mean, log_theta, theta, stirling_tail(theta))
        d_mean = (x_ng - mean) * share
        d_theta = at_zero - d_mean + torch.where(counted, _digamma_step(x, theta), 0.0)
        d_gate = None
        if gate_ng is None:
            value = torch.where(counted, full, at_zero)
        else:
            # the probability that a zero is from the negative binomial
            chance = torch.where(counted, 1.0, torch.sigmoid(at_zero - gate_ng))
            value = torch.where(counted, full, torch.logaddexp(gate_ng, at_zero)) - F.softplus(gate_ng)
            d_mean, d_theta = d_mean * chance, d_theta * chance
            d_gate = 1.0 - chance - torch.sigmoid(gate_ng)
        d_library = d_mean.sum(-1, keepdim=True)
        d_logits = -log_share.exp() * d_library
        d_logits[:, :g] += d_mean
        ctx.save_for_backward(d_logits, d_library, d_theta, d_gate)
        ctx.shared_theta = len(log_theta) == 1
        return value.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_value: Tensor) -> tuple[Tensor | None, ...]:
        d_logits, d_library, d_theta, d_gate = ctx.saved_tensors
        scale = d_value[:, None]
        by_theta = (scale.t() @ d_theta) if ctx.shared_theta else scale * d_theta
        return scale * d_logits, scale * d_library, by_theta, None if d_gate is None else scale * d_gate, None
