"""A network for velocities on a path between two distributions, and the solver that follows them.

The priors that transform noise to z use it, and the map that transforms control to treated cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# log signal-to-noise ratio at both ends: noise is 1.1 % of the spread of z at the near end; at the far end, the reverse
MAX_LOG_RATIO = 9.0
NEAR = math.atan(math.exp(-MAX_LOG_RATIO / 2))
FAR = math.pi / 2 - NEAR
HIDDEN, BLOCKS, WAVES = 64, 3, 6
# classical fourth-order Runge-Kutta: position in the step, and how far along the previous slope
STAGES = ((0.0, 0.0), (0.5, 0.5), (0.5, 0.5), (1.0, 1.0))


class Velocity(nn.Module):
    """f(x, phi, condition): a residual network that is initialised to zero."""

    def __init__(self, n_latent: int, n_conditions: int) -> None:
        super().__init__()
        self.n_conditions = n_conditions
        self.into = nn.Linear(n_latent, HIDDEN)
        self.time = nn.Linear(2 * WAVES + 1, HIDDEN)
        self.first = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(BLOCKS))
        self.second = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(BLOCKS))
        # adds angle and condition in each block
        self.shift = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(BLOCKS))
        self.condition = nn.Embedding(n_conditions, HIDDEN) if n_conditions else None
        self.out = nn.Linear(HIDDEN, n_latent)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def context(self, phi: Tensor, condition_n: Tensor | None) -> Tensor:
        """Embed angle and condition, (n, hidden), or (1, hidden) for one angle and no condition.

        ``phi`` is (n,) or (1,).
        """
        wave = phi[:, None] * (2.0 * torch.arange(1, WAVES + 1, device=phi.device))
        log_ratio = -2.0 * phi.tan().log() / MAX_LOG_RATIO
        e = self.time(torch.cat((wave.sin(), wave.cos(), log_ratio[:, None]), dim=-1).to(self.out.weight.dtype))
        if self.condition is not None and condition_n is not None:
            e = e + self.condition(condition_n)
        return F.silu(e)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.into(x)
        for first, second, shift in zip(self.first, self.second, self.shift, strict=True):
            h = h + second(F.silu(first(F.silu(h)) + shift(context)))
        return self.out(F.silu(h))

    def with_divergence(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Compute f and sum_j df_j / dx_j, (n,), by propagating all derivatives forward, (n, d, hidden)."""
        h = self.into(x)
        d_h = self.into.weight.t()[None].expand(len(x), -1, -1)
        for first, second, shift in zip(self.first, self.second, self.shift, strict=True):
            a, slope = _silu(h)
            b, slope_b = _silu(first(a) + shift(context))
            d_b = _linear(d_h * slope[:, None], first) * slope_b[:, None]
            h, d_h = h + second(b), d_h + _linear(d_b, second)
        a, slope = _silu(h)
        return self.out(a), torch.einsum("ndh,nh,dh->n", d_h, slope, self.out.weight)


def _linear(x: Tensor, layer: nn.Module) -> Tensor:
    """Apply a linear layer without its bias."""
    return F.linear(x, cast("nn.Linear", layer).weight)


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute x sigmoid(x) and its derivative."""
    s = torch.sigmoid(x)
    value = x * s
    return value, s + value * (1.0 - s)


def weighted(parts: list[Tensor]) -> Tensor:
    """Return six times the mean slope of the four stages of a step."""
    return parts[0] + 2.0 * (parts[1] + parts[2]) + parts[3]


def follow(x: Tensor, steps: Iterable[tuple[float, float]], velocity: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Follow dx / dphi = velocity(x, phi) from x, (n, d); ``steps`` are angles and signed lengths of the solver's steps."""
    for phi, step in steps:
        moves: list[Tensor] = []
        for shift, share in STAGES:
            at = x if not moves else torch.add(x, moves[-1], alpha=share * step)
            moves.append(velocity(at, phi + shift * step))
        x = x + step / 6.0 * weighted(moves)
    return x
