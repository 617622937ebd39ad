"""Compare counts with the posterior predictive distribution: moments, zeros, and calibration of its intervals.

Given z, all quantities have a closed form (means, variances, probabilities of a zero, distribution functions), so only
z is drawn, not counts. Calibration uses the probability integral transform for discrete data: a count x is represented
by the uniform distribution from F(x - 1) to F(x), and under a calibrated distribution these add up to a uniform one on
(0, 1) (Czado, Gneiting & Held 2009). A 90 % interval is then hit in 90 % of the cases, although no set of counts has
exactly that probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vxpress.core.data import Source, walk
from vxpress.core.inference.predictive import block_rows
from vxpress.core.likelihoods import Likelihood
from vxpress.core.model import VAE

LEVELS = (0.5, 0.9)
N_BINS = 20
# expressed entries have a smaller probability of a zero; the intervals of all others are hit under any distribution
MAX_ZERO_PROBABILITY = 0.5


@dataclass(frozen=True)
class Summary:
    """Observed and predicted values per gene (g,) or cell (n,), and coverage of intervals of :data:`LEVELS`.

    Coverage has the shape (levels, g) or (levels, n).
    """

    mean: np.ndarray
    mean_predicted: np.ndarray
    variance: np.ndarray
    variance_predicted: np.ndarray
    zero_fraction: np.ndarray
    zero_fraction_predicted: np.ndarray
    coverage: np.ndarray


@dataclass(frozen=True)
class PredictiveCheck:
    """Results per gene over cells, per cell over genes, and over all entries.

    ``expressed_coverage`` (levels,) and ``pit`` (20,), the share of entries in each twentieth of the transform, are
    computed over the ``n_expressed`` entries whose predicted probability of a zero is below one half.
    """

    genes: Summary
    cells: Summary
    coverage: np.ndarray
    expressed_coverage: np.ndarray
    pit: np.ndarray
    n_expressed: int


class _Block:
    """Predictive distribution of a block of cells, as sums over draws."""

    def __init__(self, x_ng: Tensor, *, discrete: bool) -> None:
        self.x_ng, self.discrete, self.n_draws = x_ng, discrete, 0
        self.where = torch.nonzero(x_ng, as_tuple=True)
        self.observed, self.mean, self.second, self.zero = torch.zeros(4, *x_ng.shape, dtype=torch.float64)
        self.total_second_n = torch.zeros(len(x_ng), dtype=torch.float64)
        shape = self.where[0].shape if discrete else x_ng.shape
        self.low, self.high = torch.zeros(2, *shape, dtype=torch.float64)

    def add(self, distribution: Likelihood) -> None:
        """Add one draw of the latent variables."""
        mean, variance, value = distribution.mean, distribution.variance, distribution.observe(self.x_ng)
        self.observed += value
        self.mean += mean
        self.second += variance + mean.square()
        self.zero += distribution.zero_probability
        self.total_second_n += variance.sum(-1, dtype=torch.float64) + mean.sum(-1, dtype=torch.float64).square()
        low, high = (
            distribution.at(*self.where).steps(value[self.where]) if self.discrete else distribution.steps(value)
        )
        self.low += low
        self.high += high
        self.n_draws += 1

    def close(self) -> None:
        """Turn sums over draws into means."""
        for part in (self.observed, self.mean, self.second, self.zero, self.total_second_n, self.low, self.high):
            part.div_(self.n_draws)

    def stretches(self) -> tuple[Tensor, Tensor]:
        """Return F(x - 1) and F(x), (n, g); for a density, both are F(x)."""
        if not self.discrete:
            return self.low, self.high
        low, high = torch.zeros_like(self.zero), self.zero.clone()
        low[self.where], high[self.where] = self.low, self.high
        return low, high


def below(low: Tensor, high: Tensor, t: float) -> Tensor:
    """Compute the share of the interval from ``low`` to ``high`` that is below ``t``; 0 or 1 for a single point."""
    return ((t - low) / (high - low).clamp_min(1e-300)).clamp_(0.0, 1.0)


class _Sums:
    """Sums over the cells seen so far, per gene, and finished values per cell."""

    def __init__(self, n_genes: int) -> None:
        names = ("x", "x2", "x_zero", "mean", "second", "spread", "zero")
        self.gene = {name: torch.zeros(n_genes, dtype=torch.float64) for name in names}
        self.gene_coverage = torch.zeros(len(LEVELS), n_genes, dtype=torch.float64)
        self.cell: list[tuple[Tensor, ...]] = []
        self.cell_coverage: list[Tensor] = []
        self.expressed = torch.zeros(len(LEVELS), dtype=torch.float64)
        self.pit = torch.zeros(N_BINS, dtype=torch.float64)
        self.n, self.n_expressed = 0, 0

    def add(self, block: _Block) -> None:
        x, mean, g = block.observed, block.mean, block.mean.shape[1]
        is_zero = (x == 0).double()
        values = (x, x.square(), is_zero, mean, block.second, block.second - mean.square(), block.zero)
        for name, value in zip(self.gene, values, strict=True):
            self.gene[name] += value.sum(0)
        variance_n = x.var(1) if g > 1 else torch.full((len(x),), torch.nan, dtype=x.dtype)
        predicted_n = (block.second.sum(1) - block.total_second_n / g) / (g - 1 if g > 1 else torch.nan)
        self.cell.append((x.mean(1), mean.mean(1), variance_n, predicted_n, is_zero.mean(1), block.zero.mean(1)))
        low, high = block.stretches()
        chosen = block.zero < MAX_ZERO_PROBABILITY
        covered = []
        for k, level in enumerate(LEVELS):
            hit = below(low, high, (1 + level) / 2) - below(low, high, (1 - level) / 2)
            self.gene_coverage[k] += hit.sum(0)
            self.expressed[k] += hit[chosen].sum()
            covered.append(hit.mean(1))
        self.cell_coverage.append(torch.stack(covered))
        low, high = low[chosen], high[chosen]
        edges = torch.stack([below(low, high, t).sum() for t in np.linspace(0, 1, N_BINS + 1)])
        # a point at 0 is not below the first edge, but belongs to the first bin
        edges[0], edges[-1] = 0, len(low)
        self.pit += edges.diff()
        self.n += len(x)
        self.n_expressed += len(low)

    def result(self) -> PredictiveCheck:
        n, s = self.n, self.gene
        free = n - 1 if n > 1 else torch.nan
        genes = (
            s["x"] / n,
            s["mean"] / n,
            (s["x2"] - s["x"].square() / n).clamp_min(0) / free,
            # variance of new data of the same cells, by the law of total variance
            (s["second"] - (s["spread"] + s["mean"].square()) / n) / free,
            s["x_zero"] / n,
            s["zero"] / n,
            self.gene_coverage / n,
        )
        cells = [torch.cat(part) for part in zip(*self.cell, strict=True)] + [torch.cat(self.cell_coverage, dim=1)]
        some = self.n_expressed if self.n_expressed else torch.nan
        return PredictiveCheck(
            Summary(*(part.numpy() for part in genes)),
            Summary(*(part.numpy() for part in cells)),
            (self.gene_coverage.mean(1) / n).numpy(),
            (self.expressed / some).numpy(),
            (self.pit / some).numpy(),
            self.n_expressed,
        )


@torch.no_grad()
def predictive_check(model: VAE, cells: Source, *, n_draws: int, seed: int) -> PredictiveCheck:
    """Compare the counts of all cells with their distribution under ``n_draws`` draws of the latent variables."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    step, sums = block_rows(model.config.n_genes), _Sums(model.config.n_genes)
    for _, batch in walk(cells, size=step, stage="comparing counts"):
        q = model.posterior(batch)
        block = _Block(batch.x_ng, discrete=model.decoder.likelihood.discrete)
        for _ in range(n_draws):
            point = q.draw(lambda like: torch.randn(like.shape, generator=generator))
            block.add(model.likelihood(point, batch.covariates, batch.log_library_n1))
        block.close()
        sums.add(block)
    return sums.result()
