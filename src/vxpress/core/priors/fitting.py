"""Fit a prior alone to the posteriors of cells that a model has encoded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vxpress.core.config import PriorConfig
from vxpress.core.isolation import seeded
from vxpress.core.loop import copies, keep_best, put, rise_and_fall
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors import PRIORS, Prior
from vxpress.core.progress import steps
from vxpress.core.whole_import import import_for_optimizers

BATCH = 512
MAX_NORM = 5.0
AVERAGING = 0.99
# share of the training cells on which the best state is chosen, and their largest number
CHOOSING_FRACTION, MAX_CHOOSING = 0.1, 2_000
# number of checks on these cells, and number of checks without improvement after which the fit ends
CHECKS, PATIENCE = 20, 5
CHOOSING_DRAWS = 4


@dataclass(frozen=True)
class Learned:
    """Step of the kept state, number of all steps, and mean loss at every check on the cells used for the choice."""

    best_step: int
    n_steps: int
    losses: list[float]


def build_prior(config: PriorConfig, n_latent: int, seed: int) -> Prior:
    """Build a newly initialised prior to be learned alone; no global random state is read or changed."""
    config = PRIORS[config.name].alone(config)
    with seeded(seed):
        return PRIORS[config.name](config, n_latent)


def learn(
    prior: Prior,
    q: DiagonalNormal,
    condition_n: Tensor | None,
    *,
    seed: int,
    n_steps: int | None = None,
    learning_rate: float | None = None,
) -> Learned:
    """Fit ``prior`` to the mean of posteriors ``q`` (n, d), with new draws in every step; leave it in evaluation mode.

    The optimizer is Adam with a short rise and a cosine decay of the learning rate. The result is a running mean of the
    weights (Polyak & Juditsky 1992), at the step with the lowest loss on a tenth of the cells, which are not used in
    the steps.
    """
    n_steps = prior.n_steps if n_steps is None else n_steps
    learning_rate = prior.learning_rate if learning_rate is None else learning_rate
    device = q.loc.device
    generator = torch.Generator(device=device).manual_seed(seed)
    order = torch.randperm(len(q), generator=generator, device=device)
    n_choosing = min(MAX_CHOOSING, max(1, round(CHOOSING_FRACTION * len(order))))
    choosing, rows = order[:n_choosing].repeat(CHOOSING_DRAWS), order[n_choosing:]

    def draw(at: Tensor) -> tuple[Tensor, Tensor | None]:
        return q[at].draw(generator), None if condition_n is None else condition_n[at]

    if condition_n is not None:
        prior.set_shares(condition_n)
    prior.start_from_posteriors(q[rows], None if condition_n is None else condition_n[rows], generator)
    judged = draw(choosing)
    parameters = [p for p in prior.parameters() if p.requires_grad]
    if not parameters:
        return Learned(0, 0, [])
    averages = copies(parameters)
    losses: list[float] = []
    import_for_optimizers()
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    every = max(1, n_steps // CHECKS)

    def take(step: int, _: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rise_and_fall(step, n_steps)
        at = rows[torch.randint(len(rows), (min(BATCH, len(rows)),), generator=generator, device=device)]
        optimizer.zero_grad(set_to_none=True)
        loss = prior.loss(*draw(at), generator).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        if bool(torch.isfinite(norm + loss.detach())):
            optimizer.step()
        # early on, the mean covers the steps so far
        share = min(AVERAGING, step / (step + 10))
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1.0 - share)

    def judge() -> float:
        losses.append(_loss_with(prior, parameters, averages, *judged, seed=seed))
        return losses[-1]

    kept = keep_best(
        steps(range(n_steps), "learning the prior"),
        take,
        judge,
        lambda: copies(averages),
        due=lambda step: step % every == 0 or step == n_steps,
        patience=PATIENCE * every,
    )
    put(parameters, kept.state)
    for p in parameters:
        p.grad = None
    prior.eval()
    return Learned(kept.step, kept.n_steps, losses)


@torch.no_grad()
def _loss_with(
    prior: Prior,
    parameters: list[torch.nn.Parameter],
    weights: list[Tensor],
    z_nd: Tensor,
    condition_n: Tensor | None,
    *,
    seed: int,
) -> float:
    """Compute the mean loss with other weights, with the same noise in every call."""
    before = copies(parameters)
    put(parameters, weights)
    generator = torch.Generator(device=z_nd.device).manual_seed(seed)
    found = float(prior.loss(z_nd, condition_n, generator).double().mean())
    put(parameters, before)
    return found
