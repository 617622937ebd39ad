"""Learn new categories from new cells, with the rest of the model frozen (scArches, Lotfollahi et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vxpress.core.blocks import Point, Z
from vxpress.core.data import Batch, Source, walk
from vxpress.core.loop import copies, keep_best, put
from vxpress.core.model import VAE
from vxpress.core.noise import Noise
from vxpress.core.objectives import elbo
from vxpress.core.progress import steps
from vxpress.core.query.surgery import new_weights
from vxpress.core.whole_import import import_for_optimizers

BATCH = 128
LEARNING_RATE = 0.01
PATIENCE = 5
EVAL_CHUNK = 1024


@dataclass(frozen=True)
class FineTuned:
    """The ELBO of held-out cells before and after, in nats per cell, and the number of trained epochs."""

    before: float
    after: float
    n_epochs: int


@dataclass(frozen=True)
class Completed:
    """Which genes were measured, and what the imputed others add to the first layer of the encoder (n, hidden).

    ``others`` holds the posterior means of the blocks other than z, (n, columns), except an inferred size factor.
    """

    observed_g: Tensor
    filled_nh: Tensor
    others: Point = field(default_factory=dict)


def fine_tune(
    model: VAE,
    cells: Source,
    added: Sequence[int],
    train_rows: Tensor,
    validation_rows: Tensor,
    *,
    max_epochs: int,
    seed: int,
    completed: Completed | None = None,
) -> FineTuned:
    """Train the weights of the last ``added[k]`` categories of covariate k in place; all others stay exactly the same.

    Norms keep their running statistics, and there is neither dropout nor weight decay, so a category with few cells
    moves little. The state with the best held-out ELBO is kept; it may be the initial one.
    """
    model.eval()
    device = train_rows.device
    masks = new_weights(model, added)
    parameters = dict(model.named_parameters())
    required = {name: value.requires_grad for name, value in parameters.items()}
    for name, value in parameters.items():
        value.requires_grad_(name in masks)
    trained = [parameters[name] for name in masks]
    import_for_optimizers()
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
    sampler = cells.sampler(train_rows, math.ceil(len(train_rows) / BATCH), seed)
    cells.keep(validation_rows)
    noise = Noise(seed + 1, device)
    eps_nd = _fixed_noise(model, len(validation_rows), seed, device)

    def held_out() -> float:
        return _mean_bound(model, cells, validation_rows, eps_nd, completed)

    def epoch(_: int, __: int) -> None:
        for batch in cells.batches(sampler.epoch()):
            optimizer.zero_grad(set_to_none=True)
            loss = -_bound(model, batch, noise, None, completed).mean()
            loss.backward()
            for parameter, mask in zip(trained, masks.values(), strict=True):
                if parameter.grad is not None:
                    parameter.grad = torch.where(mask & torch.isfinite(parameter.grad), parameter.grad, 0.0)
            optimizer.step()

    before = held_out()
    kept = keep_best(
        steps(range(max_epochs), "fine-tuning"),
        epoch,
        lambda: -held_out(),
        lambda: copies(trained),
        start=-before,
        patience=PATIENCE,
    )
    put(trained, kept.state)
    for name, value in parameters.items():
        value.grad = None
        value.requires_grad_(required[name])
    return FineTuned(before, -kept.loss, kept.n_steps)


def _fixed_noise(model: VAE, n: int, seed: int, device: torch.device) -> Tensor:
    return torch.randn(n, model.n_noise, generator=torch.Generator().manual_seed(seed)).to(device)


@torch.no_grad()
def _mean_bound(model: VAE, cells: Source, rows: Tensor, eps_nd: Tensor, completed: Completed | None) -> float:
    unused, total = Noise(0, rows.device), 0.0
    for part, batch in walk(cells, rows, EVAL_CHUNK):
        total += float(_bound(model, batch, unused, eps_nd[part], completed).double().sum())
    return total / len(rows)


def _bound(model: VAE, batch: Batch, noise: Noise, eps_nd: Tensor | None, completed: Completed | None) -> Tensor:
    """Compute the ELBO of some cells, over the measured genes only.

    If some were not measured, only z is inferred; the size factor and further blocks are those of the completed cells.
    """
    if completed is None:
        return elbo(model, batch, noise, eps_nd).value()
    s_nc = model.encoder_condition(batch.covariates)
    q = model.encoder.after_first(model.encoder.first_product(batch, s_nc) + completed.filled_nh[batch.rows], s_nc)
    z_nd = q.rsample(noise.normal_like(q.loc) if eps_nd is None else eps_nd[:, : q.loc.shape[1]])
    point = {Z: z_nd} | {name: value[batch.rows] for name, value in completed.others.items()}
    distribution = model.likelihood(point, batch.covariates, batch.log_library_n1)
    log_prob_ng = distribution.log_prob(batch.x_ng)[:, completed.observed_g]
    return log_prob_ng.sum(-1) - model.prior.kl(q, z_nd).sum(-1)
