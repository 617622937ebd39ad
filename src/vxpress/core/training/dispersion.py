"""Refit the inverse dispersions of a trained model; everything else stays as it is.

A few hundred training steps move a log dispersion only so far.  For strongly expressed genes, whose best dispersion is
far from the initial one, the modelled counts therefore stay too noisy.  Given the means, the likelihood of each gene is
a function of one number, and its maximum is found here.  The means fit training cells more closely than other cells, so
training counts scatter less about them.  How much more other cells scatter is estimated on validation cells, as one
number for all genes of similar expression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vxpress.core.blocks import Point, Posterior
from vxpress.core.config import RNA
from vxpress.core.data import Batch, Source, gene_sums, walk
from vxpress.core.inference.importance import log_likelihoods
from vxpress.core.model import VAE
from vxpress.core.threads import in_order, same_bits

# range of log theta of a fitted gene; above the highest the distribution is almost Poisson
LOWEST, HIGHEST = -4.0, 7.0
# sd of the prior of log theta about its trained value, which a gene with almost no counts keeps
PRIOR_SD = 0.5
MAX_BINS, GENES_PER_BIN = 5, 50
# step sizes that reach either end of the range from anywhere in it, and number of narrowing steps of the bracket
STRIDES, NARROWINGS = (1.0, 2.0, 4.0, 8.0), 6
MAX_CELLS, CHUNK, N_DRAWS = 4_096, 512, 2
# logits that are kept between the steps, 128 MB
KEPT_ENTRIES = 2**25
# least number of validation cells; number of them on which the gain is measured, and samples of each
MIN_VALIDATION, MAX_JUDGED, N_SAMPLES = 20, 1_000, 10


def has_dispersions(model: VAE) -> bool:
    """Whether the model has dispersions that do not depend on z."""
    return model.decoder.likelihood.discrete and hasattr(model.decoder, "log_dispersion")


@same_bits
def refit(model: VAE, source: Source, train_rows: Tensor, validation_rows: Tensor, *, seed: int) -> float:
    """Refit the dispersions of a model in place; restore the old ones unless validation cells gain.

    Returns the gain in the importance-weighted bound of the validation cells, in nats per cell. It is 0 if the old
    dispersions were restored, or if there are fewer than ``MIN_VALIDATION`` validation cells.
    """
    if len(source.having(RNA, validation_rows)) < MIN_VALIDATION:
        return 0.0
    generator = torch.Generator().manual_seed(seed)
    learning, shifting = (
        _some(source.having(RNA, rows), MAX_CELLS, generator) for rows in (train_rows, validation_rows)
    )
    judging = shifting[:MAX_JUDGED]

    def judge() -> float:
        (bound,) = log_likelihoods(model, source, [N_SAMPLES], seed=seed, rows=judging)
        return float(bound.log_likelihood_n.mean())

    trained, before, gain = model.decoder.log_dispersion.detach().clone(), judge(), 0.0
    try:
        set_dispersions(model, most_likely(model, source, draw(model, source, learning, generator)))
        drawn = [part for _ in range(N_DRAWS) for part in draw(model, source, shifting, generator)]
        set_dispersions(model, shifted(model, source, drawn))
        gain = judge() - before
    finally:
        if not gain > 0:
            set_dispersions(model, trained)
    return gain if gain > 0 else 0.0


def _some(rows: Tensor, most: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(rows), generator=generator)
    return rows[order[:most].to(rows.device)]


@dataclass(frozen=True)
class Drawn:
    """Row numbers of cells, and one draw of their latent blocks."""

    rows: Tensor
    point: Point


@torch.no_grad()
def draw(model: VAE, source: Source, rows: Tensor, generator: torch.Generator) -> list[Drawn]:
    """Draw from the posteriors of some cells, in minibatches."""
    model.eval()

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.device)

    def posterior(item: tuple[slice, Batch]) -> tuple[Tensor, Posterior]:
        return item[1].rows, model.posterior(item[1])

    found = in_order(posterior, walk(source, rows, CHUNK), source.device)
    return [Drawn(rows, q.draw(noise)) for rows, q in found]


class Slope:
    """The slope of the summed log likelihood of drawn cells along log theta; what does not depend on theta is kept."""

    def __init__(self, model: VAE, source: Source, drawn: list[Drawn]) -> None:
        self.model, self.drawn, self.source = model, drawn, source
        self.parts: list[Callable[[], Tensor]] = []
        # a GPU computes the products faster than memory is found for them
        self.space = KEPT_ENTRIES if source.device.type == "cpu" else 0

    def __call__(self, log_theta: Tensor) -> Tensor:
        """Compute it, (rows of theta, g)."""
        set_dispersions(self.model, log_theta)
        total = torch.zeros_like(log_theta)
        for gradient in in_order(lambda part: part(), self._parts(), self.source.device):
            total += gradient
        return total

    def _parts(self) -> Iterator[Callable[[], Tensor]]:
        """Yield a function of each minibatch; those for which there is space are made once."""
        yield from self.parts
        left = self.drawn[len(self.parts) :]
        for part, batch in zip(left, self.source.batches([part.rows for part in left]), strict=True):
            size = self.model.decoder.kept_entries(len(batch))
            keep = size <= self.space
            gradient = self.model.dispersion_gradient(part.point, batch, keep=keep)
            if keep:
                self.space -= size
                self.parts.append(gradient)
            else:
                self.space = 0
            yield gradient


def most_likely(model: VAE, source: Source, drawn: list[Drawn]) -> Tensor:
    """Find the log theta that maximise E_q[log p(x | z)] of some cells plus their log prior, (rows of theta, g)."""
    start = model.decoder.log_dispersion.detach().clone().clamp(LOWEST, HIGHEST)
    of_likelihood = Slope(model, source, drawn)

    def slope(log_theta: Tensor) -> Tensor:
        return of_likelihood(log_theta) - (log_theta - start) / PRIOR_SD**2

    return climb(slope, start, LOWEST, HIGHEST)


def shifted(model: VAE, source: Source, drawn: list[Drawn]) -> Tensor:
    """Shift log theta by the most likely amount, one for all genes of similar expression, (rows of theta, g)."""
    start = model.decoder.log_dispersion.detach().clone()
    total_g = gene_sums(source, torch.cat([part.rows for part in drawn]))
    n_bins = max(1, min(MAX_BINS, len(total_g) // GENES_PER_BIN))
    bin_g = total_g.argsort().argsort() * n_bins // len(total_g)
    reach, of_likelihood = HIGHEST - LOWEST, Slope(model, source, drawn)

    def at(shift: Tensor) -> Tensor:
        return (start + shift[bin_g]).clamp(LOWEST, HIGHEST)

    def slope(shift: Tensor) -> Tensor:
        slope_g = of_likelihood(at(shift)).sum(0)
        return shift.new_zeros(n_bins).index_add_(0, bin_g, slope_g)

    return at(climb(slope, start.new_zeros(n_bins), -reach, reach))


def climb(slope: Callable[[Tensor], Tensor], start: Tensor, low: float, high: float) -> Tensor:
    """Find, for each element, the maximum of a curve uphill of ``start`` from the curve's slope.

    Steps of growing size go uphill until the slope changes sign. Then regula falsi (Illinois form) narrows down the
    zero of the slope. Elements whose slope is zero or not finite do not move.
    """

    def finite_slope(t: Tensor) -> Tensor:
        return slope(t).nan_to_num(0.0)

    below, at = start, start
    slope_below = slope_at = finite_slope(start)
    uphill = slope_at.sign()
    rising = uphill != 0
    for stride in STRIDES:
        ahead = torch.where(rising, (at + uphill * stride).clamp(low, high), at)
        below, slope_below = torch.where(rising, at, below), torch.where(rising, slope_at, slope_below)
        slope_ahead = finite_slope(ahead)
        at, slope_at = torch.where(rising, ahead, at), torch.where(rising, slope_ahead, slope_at)
        rising = rising & (slope_at * uphill > 0) & (at > low) & (at < high)
        if not bool(rising.any()):
            break
    enclosed = slope_below * slope_at < 0
    for _ in range(NARROWINGS):
        between = torch.where(enclosed, (below * slope_at - at * slope_below) / (slope_at - slope_below), at)
        slope_between = finite_slope(between)
        across = slope_between * slope_at < 0
        below = torch.where(enclosed & across, at, below)
        slope_below = torch.where(across, slope_at, 0.5 * slope_below)
        at, slope_at = between, torch.where(enclosed, slope_between, slope_at)
        enclosed = enclosed & (slope_at != 0)
    return at


def set_dispersions(model: VAE, log_theta: Tensor) -> None:
    """Set the dispersions of a model."""
    model.decoder.log_dispersion.data.copy_(log_theta)
