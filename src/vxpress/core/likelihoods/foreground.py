"""The output of likelihoods of proteins: the rate of the foreground, above a background that the likelihood describes itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from vxpress.core.data import Source
from vxpress.core.likelihoods.layers import Layers
from vxpress.core.likelihoods.levels import N_START, Levels
from vxpress.core.likelihoods.output import Measured
from vxpress.core.likelihoods.sums import Sums

if TYPE_CHECKING:
    from vxpress.core.likelihoods.base import Likelihood

BACKGROUND, MIXING = "background", "mixing"
# rounds of the two components at the start, and least standard deviation of log counts within one
ROUNDS, MIN_SD = 20, 0.2
# range of the log dispersion at the start
LOWEST, HIGHEST = -1.0, 3.0


class Foreground(Levels):
    """The location is log(foreground rate - background rate) of each protein.

    The heads ``"background"``, the log rate of the background, and ``"mixing"``, the logit of the probability that a count
    comes from the background, belong to the likelihood. A decoded value is the foreground rate times the probability
    of the foreground: the expected count without background. Rates are counts per cell; a size factor does not enter,
    because the total of a small panel depends on the type of the cell more than on its depth.
    """

    scale = "foreground"
    nonnegative = True

    def level(self, x: Tensor, library: Tensor) -> Tensor:
        return torch.log1p(x)

    def per_intensity(self, library: Tensor) -> Tensor:
        return torch.ones_like(library)

    @torch.no_grad()
    def start(self, layers: Layers, likelihood: type[Likelihood], cells: Source, rows: Tensor) -> None:
        """Start each protein at the two components of its log counts, over 4,096 to 8,191 cells if there are more."""
        some = rows[:: max(1, len(rows) // N_START)]
        y_ng = cells.batch(some).x_ng.log1p()
        low_g, high_g, share_g, sd_g = two_components(y_ng)
        low, high = low_g.expm1().clamp_min(0.5), high_g.expm1().clamp_min(1.0)
        layers.start_location((high - low).clamp_min(0.1 * low).log())
        layers.start_head(BACKGROUND, 0.0)
        layers.heads[BACKGROUND].bias.copy_(low.log())
        layers.start_head(MIXING, 0.0)
        layers.heads[MIXING].bias.copy_(torch.logit(share_g.clamp(0.05, 0.95)))
        if layers.log_dispersion is not None:
            # the variance of log counts is about 1 / theta
            layers.log_dispersion.copy_((-2.0 * sd_g.log()).clamp(LOWEST, HIGHEST).expand_as(layers.log_dispersion))
        elif "dispersion" in layers.heads:
            layers.start_head("dispersion", likelihood.start_log_dispersion)

    def sums(self, layers: Layers, n: int, inside: Tensor | None, outside: Tensor | None) -> Sums:
        return _ForegroundSums(layers, n, inside, outside, torch.expm1)

    def expected_counts(self, layers: Layers, values_ng: Tensor, log_library_n1: Tensor) -> Tensor:
        """Return the values, which are counts of the foreground."""
        return values_ng

    def change(self, before_ng: Tensor, after_ng: Tensor) -> Tensor:
        """Measure the mean absolute change of log1p of the foreground, (n,)."""
        return (after_ng.log1p() - before_ng.log1p()).abs().mean(-1)

    def measured_share(self, distribution: Likelihood, measured: Measured) -> Tensor:
        """Return 1: rates do not depend on a size factor."""
        return torch.ones_like(measured.batch.log_library_n1)


def two_components(y_ng: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit two normal components with a common standard deviation to each column.

    Returns the lower and the upper mean, the share of the lower component, and the standard deviation, each (g,).
    """
    low_g, high_g = y_ng.quantile(0.2, dim=0), y_ng.quantile(0.9, dim=0)
    share_g, sd_g = torch.full_like(low_g, 0.5), y_ng.std(0).clamp_min(MIN_SD)
    for _ in range(ROUNDS):
        log_low, log_high = (
            -0.5 * ((y_ng - mean) / sd_g).square() + weight.clamp_min(1e-6).log()
            for mean, weight in ((low_g, share_g), (high_g, 1.0 - share_g))
        )
        of_low = torch.sigmoid(log_low - log_high)
        n_low, n_high = (part.sum(0).clamp_min(1e-6) for part in (of_low, 1.0 - of_low))
        low_g, high_g = (of_low * y_ng).sum(0) / n_low, ((1.0 - of_low) * y_ng).sum(0) / n_high
        low_g, high_g = torch.minimum(low_g, high_g), torch.maximum(low_g, high_g)
        share_g = n_low / (n_low + n_high)
        squared = of_low * (y_ng - low_g).square() + (1.0 - of_low) * (y_ng - high_g).square()
        sd_g = squared.mean(0).sqrt().clamp_min(MIN_SD)
    return low_g, high_g, share_g, sd_g


class _ForegroundSums(Sums):
    """Sums of the foreground rate times the probability of the foreground."""

    def __init__(
        self,
        layers: Layers,
        n: int,
        inside: Tensor | None,
        outside: Tensor | None,
        value: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(layers, n, inside, outside, value)
        columns = slice(None) if inside is None else inside
        self.heads = {
            name: (layers.heads[name].weight.detach()[columns], layers.heads[name].bias.detach()[columns])
            for name in (BACKGROUND, MIXING)
        }

    def add_block(self, f_nf: Tensor, part: slice) -> None:
        if "location" in self.layers:
            above = self.outputs("location", f_nf).exp()
            background, mixing = (F.linear(f_nf, *self.heads[name]) for name in (BACKGROUND, MIXING))
            self.inside[part].add_((above + background.exp()) * torch.sigmoid(-mixing))
        if self.outside is not None and "readout" in self.layers:
            self.outside[part].add_(self.value(self.outputs("readout", f_nf)).clamp_min(0.0))
