"""Inverse dispersions of a trained model, fitted anew with everything else left as it is.

A training of few hundred steps moves a log dispersion by what so many steps can move it, and stops on the way: counts of
strongly expressed genes, whose law is far from where they start, stay too noisy.  Given the means each gene's likelihood is
a curve in one number, whose top is found here.  The means follow training cells more closely than others, so that counts
scatter less about them; how much more others do is one number for all genes, found on validation cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vxpress.core.counts import Batch, Cells
from vxpress.core.vae import VAE

# log theta looked at; beyond the last the law is all but Poisson's
LOWEST, HIGHEST = -4.0, 7.0
# sd of log theta about its trained value, which a gene with hardly a count keeps
PRIOR_SD = 0.5
# strides that lead from anywhere in the range to either end of it, and narrowings of what they enclose
STRIDES, NARROWINGS = (1.0, 2.0, 4.0, 8.0), 6
MAX_CELLS, CHUNK, N_DRAWS = 4_096, 512, 2


@dataclass(frozen=True)
class Refit:
    """What came of fitting dispersions anew: gain per validation cell in nats, (n,), and whether they were taken."""

    gain_n: np.ndarray
    kept: bool


def has_dispersions(model: VAE) -> bool:
    """Whether there are dispersions that do not hang on z."""
    return model.decoder.law.discrete and hasattr(model.decoder, "log_dispersion")


def refit(model: VAE, cells: Cells, train_rows: Tensor, validation_rows: Tensor, *, seed: int) -> Refit:
    """Fit the dispersions of a model in place; what validation cells, where there are any, do not gain by is undone."""
    draw_seed, judge_seed, subset_seed = map(int, np.random.SeedSequence(seed).generate_state(3))
    train_rows, validation_rows = (_some(rows, subset_seed) for rows in (train_rows, validation_rows))
    judged = [part for k in range(N_DRAWS) for part in draw(model, cells, validation_rows, judge_seed + k)]
    trained, old_n = model.decoder.log_dispersion.detach().clone(), mean_log_likelihood(model, judged, N_DRAWS)
    kept = False
    try:
        put(model, most_likely(model, draw(model, cells, train_rows, draw_seed)))
        if judged:
            put(model, shifted(model, judged))
        gain_n = mean_log_likelihood(model, judged, N_DRAWS) - old_n
        kept = not judged or bool(gain_n.mean() > 0)
    finally:
        if not kept:
            put(model, trained)
    return Refit(gain_n, kept)


def _some(rows: Tensor, seed: int) -> Tensor:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:MAX_CELLS].to(rows.device)]


@dataclass(frozen=True)
class Drawn:
    """A minibatch with one draw of each posterior, and of the size factor where it is inferred."""

    batch: Batch
    z_nd: Tensor
    log_library_n1: Tensor


@torch.no_grad()
def draw(model: VAE, cells: Cells, rows: Tensor, seed: int) -> list[Drawn]:
    """Minibatches of some cells, with draws of their posteriors."""
    model.eval()
    generator, found = torch.Generator().manual_seed(seed), []

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.device)

    for part in rows.split(CHUNK) if len(rows) else ():
        batch = cells.batch(part)
        q = model.posterior(batch)
        z_nd, log_library_n1 = q.rsample(noise(q.loc)), batch.log_library_n1
        if model.config.latent_library:
            of_library = model.library_posterior(batch)
            log_library_n1 = of_library.rsample(noise(of_library.loc))
        found.append(Drawn(batch, z_nd, log_library_n1))
    return found


def most_likely(model: VAE, drawn: list[Drawn]) -> Tensor:
    """Log theta that maximise E_q[log p(x | z)] of some cells, (rows of theta, g); a weak prior holds them where they are."""
    trained = model.decoder.log_dispersion.detach().clone().clamp(LOWEST, HIGHEST)

    def slope(log_theta: Tensor) -> Tensor:
        return _slope(model, drawn, log_theta) - (log_theta - trained) / PRIOR_SD**2

    return climb(slope, trained, LOWEST, HIGHEST)


def shifted(model: VAE, drawn: list[Drawn]) -> Tensor:
    """The dispersions of a model after the shift of all log theta alike that maximises the likelihood of some cells."""
    log_theta = model.decoder.log_dispersion.detach().clone()
    reach = HIGHEST - LOWEST
    shift = climb(lambda s: _slope(model, drawn, log_theta + s).sum()[None], log_theta.new_zeros(1), -reach, reach)
    return log_theta + shift


def climb(slope: Callable[[Tensor], Tensor], start: Tensor, low: float, high: float) -> Tensor:
    """For each element the top of a curve that is uphill of ``start``, from its slope.

    Ever longer strides go uphill until the slope turns; the zero between is closed in on by regula falsi (Illinois form).
    """
    below, at = start, start
    slope_below = slope_at = slope(start)
    uphill = slope_at.nan_to_num(0.0).sign()
    rising = uphill != 0
    for stride in STRIDES:
        ahead = torch.where(rising, (at + uphill * stride).clamp(low, high), at)
        below, slope_below = torch.where(rising, at, below), torch.where(rising, slope_at, slope_below)
        slope_ahead = slope(ahead)
        at, slope_at = torch.where(rising, ahead, at), torch.where(rising, slope_ahead, slope_at)
        rising = rising & (slope_at * uphill > 0) & (at > low) & (at < high)
        if not bool(rising.any()):
            break
    enclosed = slope_below * slope_at < 0
    for _ in range(NARROWINGS):
        between = torch.where(enclosed, (below * slope_at - at * slope_below) / (slope_at - slope_below), at)
        slope_between = slope(between)
        across = slope_between * slope_at < 0
        below = torch.where(enclosed & across, at, below)
        slope_below = torch.where(across, slope_at, 0.5 * slope_below)
        at, slope_at = between, torch.where(enclosed, slope_between, slope_at)
        enclosed = enclosed & (slope_at != 0)
    return at


def _slope(model: VAE, drawn: list[Drawn], log_theta: Tensor) -> Tensor:
    """Derivative of the summed log likelihood by log theta, (rows of theta, g)."""
    put(model, log_theta)
    total = torch.zeros_like(log_theta)
    for one in drawn:
        condition = model.conditioner(one.batch.covariates)
        total += model.decoder.dispersion_gradient(one.z_nd, condition, one.batch, one.log_library_n1)
    return total


def put(model: VAE, log_theta: Tensor) -> None:
    """Give a model other dispersions."""
    model.decoder.log_dispersion.data.copy_(log_theta)


@torch.no_grad()
def mean_log_likelihood(model: VAE, drawn: list[Drawn], n_draws: int = 1) -> np.ndarray:
    """E_q[log p(x | z)] of some cells in nats, (n,), from ``n_draws`` draws of all that follow each other."""
    if not drawn:
        return np.zeros(0)
    found = [model.log_likelihood(one.z_nd, one.batch, one.log_library_n1).double().cpu() for one in drawn]
    return torch.cat(found).reshape(n_draws, -1).mean(0).numpy()
