"""The output of likelihoods whose location is the value of each gene by itself, such as a mean log value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vxpress.core.data import Source, walk
from vxpress.core.likelihoods.layers import Layers
from vxpress.core.likelihoods.output import Measured, Output, ToReadOut

if TYPE_CHECKING:
    from vxpress.core.likelihoods.base import Likelihood

CP10K = 1e4
# number of cells, up to twice as many, from which the decoder starts
N_START = 4096
# cells in one step of the readout, and its penalty per cell
BATCH, RIDGE = 256, 1e-3


def log_cp10k(x: Tensor, library: Tensor) -> Tensor:
    """Compute log1p(1e4 x / l), the scale of the Gaussian likelihood."""
    return torch.log1p(CP10K * x / library)


class Levels(Output):
    """The location is the expected level of each gene: log1p(1e4 x / l) of its counts.

    For levels of another kind override :meth:`level`, :meth:`intensity`, :meth:`per_intensity` and ``scale``. Genes
    outside the model are read out by ridge regression of their levels.
    """

    scale = "log1p_cp10k"

    def level(self, x: Tensor, library: Tensor) -> Tensor:
        """Compute levels from counts; ``library`` is (n, 1)."""
        return log_cp10k(x, library)

    def intensity(self, level: Tensor) -> Tensor:
        """Compute from levels what is proportional to the counts within a cell, at least 0."""
        return level.expm1().clamp_min(0.0)

    def per_intensity(self, library: Tensor) -> Tensor:
        """Compute the counts per unit of intensity of cells, (n, 1)."""
        return library / CP10K

    @torch.no_grad()
    def start(self, layers: Layers, likelihood: type[Likelihood], cells: Source, rows: Tensor) -> None:
        """Start at mean and variance of the levels of each gene, over 4,096 to 8,191 cells if there are more."""
        some = rows[:: max(1, len(rows) // N_START)]
        batch = cells.batch(some)
        y_ng = self.level(batch.x_ng, batch.log_library_n1.exp())
        layers.start_location(y_ng.mean(0))
        if layers.log_dispersion is not None:
            layers.log_dispersion.copy_(likelihood.log_dispersion_from(y_ng.var(0)).expand_as(layers.log_dispersion))
        for name, value in likelihood.heads.items():
            layers.start_head(name, value)

    def expected_counts(self, layers: Layers, values_ng: Tensor, log_library_n1: Tensor) -> Tensor:
        return self.per_intensity(log_library_n1.exp()) * self.intensity(values_ng)

    @torch.no_grad()
    def fit_readout(self, layers: Layers, data: ToReadOut) -> None:
        """Fit by ridge regression of the levels on the features."""
        readout, outside, rows = layers.readout, data.outside, data.train_rows
        assert readout is not None  # noqa: S101 - the caller checks it
        center = torch.zeros(readout.in_features, dtype=torch.float64, device=rows.device)
        for _, batch in walk(outside, rows, BATCH, dense=False):
            center += data.features(batch).double().sum(0)
        center /= len(rows)
        gram = torch.eye(len(center)).to(center) * len(rows) * RIDGE
        cross, total = center.new_zeros(len(center), outside.n_genes), center.new_zeros(outside.n_genes)
        for _, batch in walk(outside, rows, BATCH, stage="reading out genes outside the model"):
            f = data.features(batch).double() - center
            y = self.level(batch.x_ng, batch.log_library_n1.exp()).double()
            gram += f.T @ f
            cross += f.T @ y
            total += y.sum(0)
        weight = torch.linalg.solve(gram, cross)
        readout.weight.copy_(weight.T)
        readout.bias.copy_(total / len(rows) - center @ weight)

    def measured_share(self, distribution: Likelihood, measured: Measured) -> Tensor:
        """Estimate the share from the intensity of expected levels: it is biased, but the error cancels in a ratio."""
        level_ng = self.intensity(distribution.mean)
        measured_n1 = level_ng[:, measured.genes_g].sum(-1, keepdim=True)
        level_n1 = level_ng.sum(-1, keepdim=True)
        if not measured.inside:
            # missing genes relative to the measured modelled ones, whose molecules are known
            total_n1 = measured.batch.log_library_n1.exp()
            lost_n1 = measured.batch.x_ng.sum(-1, keepdim=True) * (level_n1 / measured_n1.clamp_min(1e-12) - 1.0)
            return total_n1 / (total_n1 + lost_n1)
        if measured.read_out is not None:
            level_n1 = level_n1 + self.intensity(measured.read_out()).sum(-1, keepdim=True)
        return measured_n1 / level_n1.clamp_min(1e-12)
