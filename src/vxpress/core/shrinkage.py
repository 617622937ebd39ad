"""Shrink noisy effects toward 0 by as much as the effects themselves ask for (adaptive shrinkage, Stephens 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

# standard deviations of the prior's components below the largest, each smaller than the last by this factor; and steps of EM
N_COMPONENTS, FACTOR, N_STEPS = 12, 2.0 ** (-1.0 / 1.5), 30
SMALLEST = 1e-2
# effects that are shrunk at once
CHUNK = 200_000


def shrunk(effect_pg: Tensor, error_pg: Tensor) -> Tensor:
    """Return the posterior means of effects (p, g) with standard errors of the same shape, in double precision.

    The effects in a row come from a mixture of normal distributions around 0, one of them without width, whose weights are the
    most likely ones. A row without effects goes to 0; a few large effects among many small ones keep their size.
    """
    rows = max(1, CHUNK // max(1, effect_pg.shape[1]))
    return torch.cat([_shrunk(*part) for part in zip(effect_pg.split(rows), error_pg.split(rows), strict=True)])


def _shrunk(effect_pg: Tensor, error_pg: Tensor) -> Tensor:
    effect, error = effect_pg.double(), error_pg.double().clamp_min(1e-12)
    excess_p = (effect.square() - error.square()).amax(1).clamp_min(0.0)
    largest_p = (2.0 * excess_p.sqrt()).clamp_min(SMALLEST)
    steps = FACTOR ** torch.arange(N_COMPONENTS, dtype=torch.float64, device=effect.device)
    prior_pk = torch.cat((torch.zeros_like(largest_p)[:, None], largest_p[:, None] * steps), dim=1).square()
    total_pgk = error.square()[..., None] + prior_pk[:, None]
    log_pgk = -0.5 * (effect.square()[..., None] / total_pgk + total_pgk.log())
    weight_pk = torch.full_like(prior_pk, 1.0 / prior_pk.shape[1])
    for _ in range(N_STEPS):
        weight_pk = (log_pgk + weight_pk.clamp_min(1e-300).log()[:, None]).softmax(-1).mean(1)
    share_pgk = (log_pgk + weight_pk.clamp_min(1e-300).log()[:, None]).softmax(-1)
    return (share_pgk * prior_pk[:, None] / total_pgk).sum(-1) * effect
