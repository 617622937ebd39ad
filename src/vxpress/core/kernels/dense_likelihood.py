"""NB and ZINB log likelihood of a dense minibatch with its gradient in closed form, in torch operations.

This is the fast implementation for GPUs, and for small data on a CPU, for which nothing is compiled: autograd stores only the
gradients.  The formulas are those of :mod:`vxpress.core.kernels.count_rows`; counts above zero use the saddle-point form. On a
GPU it is evaluated everywhere, so shapes do not depend on the data and nothing waits for the device; on a CPU at the non-zeros.
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
# formulas of whole counts below this are read from tables on a CPU
TABLE_COUNTS = 16


def dense_log_likelihood(
    logits_ng: Tensor,
    log_library_n1: Tensor,
    log_theta: Tensor,
    gate_ng: Tensor | None,
    x_ng: Tensor,
    entries: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute log p(x | logits, l) per cell, (n,); ``log_theta`` has a row per cell or one for all.

    ``logits_ng`` may have an additional column for the remainder. With ``entries``, the positions of the non-zeros in the flattened
    counts and their values, formulas of counts above zero are evaluated only there. The result can be differentiated once.
    """
    counted = _Selected(x_ng) if entries is None else _Gathered(x_ng, *entries)
    value: Tensor = _DenseLogLikelihood.apply(
        logits_ng, log_library_n1, log_theta, gate_ng, x_ng, counted, torch.is_grad_enabled()
    )
    return value


class _Selected:
    """Formulas of counts above zero, evaluated everywhere: zeros are replaced by ones, for which they are finite."""

    def __init__(self, x_ng: Tensor) -> None:
        self.mask = x_ng > 0
        self.x = torch.where(self.mask, x_ng, 1.0)

    def evaluate(self, log_mean: Tensor, log1p_t: Tensor, log_theta: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log p and theta (digamma(x + theta) - digamma(theta)) of these counts; t is mean / theta."""
        return _formulas(self.x, log_mean, log_theta)

    def put(self, values: Tensor | float, others: Tensor | float) -> Tensor:
        """Return ``values`` for these counts, and ``others`` for zeros."""
        return torch.where(self.mask, values, others)


class _Gathered:
    """Formulas of counts above zero, evaluated at these alone; those of small whole counts are sums, which tables hold."""

    def __init__(self, x_ng: Tensor, at: Tensor, x: Tensor) -> None:
        self.like = x_ng
        stored = torch.nonzero(x, as_tuple=True)[0]
        self.at, self.x = (at, x) if len(stored) == len(x) else (at[stored], x[stored])

    def _of(self, values: Tensor, at: Tensor) -> Tensor:
        """Return ``values`` (n or 1, genes) at some positions."""
        return values[0][at % values.shape[1]] if len(values) == 1 else values.reshape(-1)[at]

    def evaluate(self, log_mean: Tensor, log1p_t: Tensor, log_theta: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log p and theta (digamma(x + theta) - digamma(theta)) of these counts; t is mean / theta."""
        x, at = self.x, self.at
        if len(log_theta) > 1:
            return _formulas(x, self._of(log_mean, at), self._of(log_theta, at))
        terms = torch.arange(TABLE_COUNTS - 1, dtype=x.dtype)[:, None] * log_theta.neg().exp()
        rising, slope = (F.pad(part.cumsum(0), (0, 0, 1, 0)) for part in (terms.log1p(), 1 / (1 + terms)))
        others = torch.nonzero((x >= TABLE_COUNTS) | (x != x.floor()), as_tuple=True)[0]
        small = x.long().clamp_max(TABLE_COUNTS - 1)
        place, factorial = (
            small * log_theta.shape[1] + at % log_theta.shape[1],
            torch.lgamma(torch.arange(TABLE_COUNTS) + 1.0),
        )
        log1p_t_at = self._of(log1p_t, at)
        log_p = x * (self._of(log_mean, at) - log1p_t_at) - self._of(log_theta.exp(), at) * log1p_t_at
        log_p += rising.view(-1)[place] - factorial[small]
        step = slope.view(-1)[place]
        if len(others):
            there = at[others]
            log_p[others], step[others] = _formulas(x[others], self._of(log_mean, there), self._of(log_theta, there))
        return log_p, step

    def put(self, values: Tensor | float, others: Tensor | float) -> Tensor:
        """Return ``values`` for these counts, and ``others`` for zeros."""
        out = others.clone() if isinstance(others, Tensor) else torch.full_like(self.like, others)
        out.view(-1)[self.at] = values
        return out


def _formulas(x: Tensor, log_mean: Tensor, log_theta: Tensor) -> tuple[Tensor, Tensor]:
    theta = log_theta.exp()
    tail = stirling_tail(theta)
    return negative_binomial_log_prob(x, log_mean, log_theta, theta, tail), _digamma_step(x, theta)


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
        ctx: Any,
        logits_ng: Tensor,
        log_library_n1: Tensor,
        log_theta: Tensor,
        gate_ng: Tensor | None,
        x_ng: Tensor,
        counted: _Selected | _Gathered,
        recording: bool,  # noqa: FBT001 - torch passes arguments by position
    ) -> Tensor:
        g, theta = x_ng.shape[1], log_theta.exp()
        log_share = F.log_softmax(logits_ng, dim=-1)
        log_mean = log_share[:, :g] + log_library_n1
        mean = log_mean.exp()
        t = mean / theta
        log1p_t, put = torch.log1p(t), counted.put
        at_zero = -theta * log1p_t
        full, step = counted.evaluate(log_mean, log1p_t, log_theta)
        if gate_ng is None:
            value = put(full, at_zero).sum(-1)
        else:
            value = (put(full, torch.logaddexp(gate_ng, at_zero)) - F.softplus(gate_ng)).sum(-1)
        if not recording:
            return value
        share, d_gate = t.add_(1).reciprocal_(), None
        d_mean = (x_ng - mean).mul_(share)
        d_theta = (at_zero - d_mean).add_(put(step, 0.0))
        if gate_ng is not None:
            # the probability that a zero is from the negative binomial
            chance = put(1.0, torch.sigmoid(at_zero - gate_ng))
            d_mean, d_theta = d_mean.mul_(chance), d_theta.mul_(chance)
            d_gate = 1.0 - chance - torch.sigmoid(gate_ng)
        d_library = d_mean.sum(-1, keepdim=True)
        d_logits = log_share.exp_().mul_(-d_library)
        d_logits[:, :g] += d_mean
        ctx.save_for_backward(d_logits, d_library, d_theta, d_gate)
        ctx.shared_theta = len(log_theta) == 1
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_value: Tensor) -> tuple[Tensor | None, ...]:
        d_logits, d_library, d_theta, d_gate = ctx.saved_tensors
        scale = d_value[:, None]
        by_theta = (scale.t() @ d_theta) if ctx.shared_theta else scale * d_theta
        d_gate = None if d_gate is None else scale * d_gate
        return scale * d_logits, scale * d_library, by_theta, d_gate, None, None, None
