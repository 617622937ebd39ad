"""Counts of a modality that a cell lacks: expected values, and intervals that are calibrated on held-out cells.

Counts are drawn from the predictive distribution: a draw of the latent blocks from the posterior given the other modalities, and a
draw of the counts. How often measured counts are below such draws tells how wide the distribution should be. The
intervals therefore end at those quantiles of the draws that enclose the wanted share of the counts of held-out cells
(conformal prediction with the predictive distribution function as score, Chernozhukov et al. 2021). They hold that share of the counts
of cells that are exchangeable with the held-out ones, whether the model is right or not. Small counts have few possible
values, so an interval of them can hold more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vxpress.core.config import RNA
from vxpress.core.covariates import Covariates
from vxpress.core.data import Joined
from vxpress.core.inference.posterior import Encoded, encode, normal_from
from vxpress.core.model import VAE
from vxpress.core.progress import steps

Floats = NDArray[np.float32]

# draws of a block of cells that are held in memory (64 MB)
BLOCK_ENTRIES = 2**24


@dataclass(frozen=True)
class Plan:
    """How counts are drawn.

    ``n`` draws per cell are divided among ``batches``, those in which the modality was measured; a cell of one of these is
    decoded in its own. Without batches the covariates stay as they are. ``log_library_m`` are log size factors of the
    modality, of which each draw of a cell takes one at random: that of a cell that lacks the modality is not known.
    """

    n: int
    batches: Sequence[int]
    log_library_m: Tensor
    seed: int

    @classmethod
    def of(cls, model: VAE, cells: Joined, name: str, rows: Tensor, *, n: int, seed: int) -> Plan:
        """Return the plan whose batches and size factors are those of the cells ``rows`` that have the modality."""
        having = cells.having(name, rows)
        source = cells if name == RNA else cells.further[name]
        batches: list[int] = []
        if model.config.has_batch:
            batches = sorted(set(cells.covariates.categorical_nk[having, 0].tolist()))
        return cls(n, batches, source.log_library_n1[having, 0].cpu(), seed)

    def covariates_of(self, draw: int, covariates: Covariates) -> Covariates:
        """Return the covariates with which a draw of some cells is decoded."""
        if not self.batches:
            return covariates
        own_n = covariates.categorical_nk[:, 0]
        measured_n = torch.isin(own_n, torch.tensor(self.batches, device=own_n.device))
        return covariates.with_category(0, torch.where(measured_n, own_n, self.batches[draw % len(self.batches)]))


@dataclass(frozen=True)
class Ends:
    """Where the interval of each feature ends.

    An end is the draw of a rank, from the smallest, int64 (f,). Where all draws are not enough, because the model is too sure, the
    smallest or largest draw is moved outward by ``stretch_below_f`` and ``stretch_above_f`` on the scale of log1p, each (f,), else
    these are 0. ``calibrated`` is False if there were too few cells to calibrate on; the ranks are then those of the quantiles.
    """

    lower_f: NDArray[np.int64]
    upper_f: NDArray[np.int64]
    stretch_below_f: Floats
    stretch_above_f: Floats
    calibrated: bool

    @classmethod
    def of_model(cls, share: float, n_draws: int, n_features: int) -> Ends:
        """Return the quantiles of the draws, as the model has them."""
        rank, nothing = round((1.0 - share) / 2.0 * n_draws), np.zeros(n_features, np.float32)
        lower_f = np.full(n_features, rank)
        return cls(lower_f, n_draws - 1 - lower_f, nothing, nothing, calibrated=False)

    def of(self, drawn: Floats) -> tuple[Floats, Floats]:
        """Return the ends of the intervals of some cells from their sorted draws (draws, n, f), each (n, f)."""
        at = np.arange(drawn.shape[-1])
        lower, upper = (drawn[rank_f, :, at].T for rank_f in (self.lower_f, self.upper_f))
        return (
            np.expm1(np.log1p(lower) - self.stretch_below_f).clip(0) if self.stretch_below_f.any() else lower,
            np.expm1(np.log1p(upper) + self.stretch_above_f) if self.stretch_above_f.any() else upper,
        )


@dataclass(frozen=True)
class Imputed:
    """Expected counts, expected log1p counts, and the ends of the intervals of some cells, each float32 (n, f)."""

    mean_nf: Floats
    log1p_nf: Floats
    lower_nf: Floats
    upper_nf: Floats


def least_cells(share: float) -> int:
    """Return how many cells are needed to calibrate intervals that hold ``share`` of the counts."""
    return math.ceil(2.0 / (1.0 - share)) - 1


@torch.no_grad()
def draws_of(
    model: VAE, encoded: Encoded, covariates: Covariates, name: str, plan: Plan
) -> Iterator[tuple[slice, Floats, Floats]]:
    """Yield blocks of cells: rows, expected counts (n, f), and draws of the counts (draws, n, f).

    ``encoded`` holds the posteriors from which the cells are drawn, ``covariates`` their covariates. All are on the processor.
    """
    model.eval()
    view = model.of(name)
    n, n_features = len(encoded), view.config.n_genes
    size = max(1, BLOCK_ENTRIES // (plan.n * n_features))
    for start in steps(range(0, n, size), f"imputing {name}"):
        part = slice(start, min(start + size, n))
        generator = torch.Generator().manual_seed(_seed(plan.seed, start))
        own, q = covariates[torch.arange(part.start, part.stop)], encoded.posterior(model, part)
        mean = np.zeros((part.stop - part.start, n_features), np.float32)
        drawn = np.empty((plan.n, *mean.shape), np.float32)
        for draw in range(plan.n):
            point = q.draw(normal_from(generator))
            chosen = torch.randint(len(plan.log_library_m), (len(mean),), generator=generator)
            distribution = view.likelihood(point, plan.covariates_of(draw, own), plan.log_library_m[chosen][:, None])
            mean += distribution.mean.numpy() / plan.n
            drawn[draw] = distribution.sample(generator=generator).numpy()
        yield part, mean, drawn


def _seed(seed: int, start: int) -> int:
    return int(np.random.SeedSequence([seed, start]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def calibrate(model: VAE, cells: Joined, name: str, rows: Tensor, plan: Plan, *, share: float) -> Ends:
    """Return the ends between which ``share`` of the counts of the cells ``rows`` lie that have the modality.

    Their counts are drawn as if they lacked it. ``rows`` should be cells that the model was not trained on.
    """
    rows = cells.having(name, rows)
    n, n_features = len(rows), model.of(name).config.n_genes
    if n < least_cells(share):
        return Ends.of_model(share, plan.n, n_features)
    source = cells if name == RNA else cells.further[name]
    x_nf = source.batch(rows).x_ng.cpu().numpy()
    held_out = cells.without(name).take(rows)
    found = Placed.empty(x_nf, plan.n)
    for part, _, drawn in draws_of(model, encode(model, held_out), held_out.covariates, name, plan):
        found.put(part, drawn)
    return enclosing(found, share, seed=plan.seed)


@dataclass(frozen=True)
class Placed:
    """Where counts of calibration cells (n, f) are among their own draws: how many are at most as large, and how many smaller.

    ``before_nf`` and ``beyond_nf`` are by how much a count is below the smallest and above the largest draw, as log1p.
    """

    x_nf: Floats
    n_draws: int
    upto_nf: NDArray[np.int64]
    below_nf: NDArray[np.int64]
    before_nf: Floats
    beyond_nf: Floats

    @classmethod
    def empty(cls, x_nf: Floats, n_draws: int) -> Placed:
        """Return the record of counts, to be filled in."""
        upto_nf, below_nf = np.empty((2, *x_nf.shape), np.int64)
        before_nf, beyond_nf = np.empty((2, *x_nf.shape), np.float32)
        return cls(x_nf, n_draws, upto_nf, below_nf, before_nf, beyond_nf)

    def put(self, part: slice, drawn: Floats) -> None:
        """Place the counts of some cells among their draws (draws, n, f)."""
        x_nf = self.x_nf[part]
        self.upto_nf[part], self.below_nf[part] = (drawn <= x_nf).sum(0), (drawn < x_nf).sum(0)
        self.before_nf[part] = np.log1p(drawn.min(0)) - np.log1p(x_nf)
        self.beyond_nf[part] = np.log1p(x_nf) - np.log1p(drawn.max(0))


def enclosing(found: Placed, share: float, *, seed: int) -> Ends:
    """Return the ends that leave at most a share of 1 - ``share`` of the counts outside, including that of a further cell.

    Half of these are to be below the interval. Ties with an end are inside, and what they leave below is added to what may be
    above, so that intervals of small counts are no wider than needed.
    """
    n = len(found.x_nf)
    outside = math.floor((1.0 - share) * (n + 1))
    # ties are broken at random to find the rank, and kept inside
    ties = np.random.default_rng(seed).random(found.x_nf.shape)
    place_nf = np.sort(found.below_nf + np.ceil(ties * (found.upto_nf - found.below_nf)), axis=0)
    lower_f = place_nf[outside // 2].astype(np.int64) - 1
    before_f = np.sort(found.before_nf, axis=0)[n - 1 - outside // 2]
    # a count is below the draw of rank r if at most r draws are as small
    n_below_f = np.where(lower_f < 0, outside // 2, (found.upto_nf <= lower_f).sum(0))
    last_f = (n - 1 - (outside - n_below_f))[None]
    # and above it if more than r draws are smaller
    upper_f, beyond_f = (
        np.take_along_axis(np.sort(values, axis=0), last_f, axis=0)[0] for values in (found.below_nf, found.beyond_nf)
    )
    return Ends(
        np.maximum(lower_f, 0),
        np.minimum(upper_f, found.n_draws - 1),
        np.where(lower_f < 0, before_f.clip(0), 0.0).astype(np.float32),
        np.where(upper_f >= found.n_draws, beyond_f.clip(0), 0.0).astype(np.float32),
        calibrated=True,
    )


def impute(model: VAE, cells: Joined, encoded: Encoded, name: str, plan: Plan, ends: Ends) -> Imputed:
    """Return expected counts and intervals of a modality for cells whose posterior ``encoded`` does not know it.

    ``encoded`` is that of ``encode(model, cells.without(name))``; for cells that lack the modality it is the same as that of
    ``cells``.
    """
    shape = len(encoded), model.of(name).config.n_genes
    found = Imputed(*(np.empty(shape, np.float32) for _ in range(4)))
    for part, mean, drawn in draws_of(model, encoded, cells.covariates, name, plan):
        drawn.sort(axis=0)
        found.mean_nf[part], found.log1p_nf[part] = mean, np.log1p(drawn).mean(0)
        found.lower_nf[part], found.upper_nf[part] = ends.of(drawn)
    return found
