"""What a repetition of the experiment would score, from halves of the cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from vxpress.core.evaluation.blocks import Sums
from vxpress.core.evaluation.change import Floats, Ints, Moments, listed, overlaps, sign_agreement, welch
from vxpress.core.evaluation.inputs import Genes, Settings
from vxpress.core.evaluation.measures import clipped, spearman_brown
from vxpress.core.evaluation.naming import of_lists, of_means, of_sd

# number of splits into halves from which the ceiling of the ranks is computed
N_RANKED = 4
Mask = NDArray[np.bool_]


def squared(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """Square the entries."""
    return sparse.csr_matrix((x.data**2, x.indices, x.indptr), shape=x.shape)


def variance_of(mean: Floats, square: Floats, n: Floats | float) -> Floats:
    """Compute an unbiased variance from the mean and the mean square of n values."""
    return np.maximum(square - mean**2, 0.0) * (n / np.maximum(np.asarray(n) - 1.0, 1.0))


@dataclass(frozen=True)
class Whole:
    """Sums of the treated and of the control cells by block, and of their squares, without resampling."""

    treated: Sums
    treated2: Sums
    control: Sums
    control2: Sums
    n_top: tuple[int, ...]

    @classmethod
    def of(
        cls, observed: sparse.csr_matrix, control: sparse.csr_matrix, blocks: tuple[Ints, Ints], n_top: tuple[int, ...]
    ) -> Whole:
        treated, treated2, control1, control2 = (
            Sums.of(z, block, int(block.max()) + 1, np.ones((1, len(block))))
            for x, block in zip((observed, control), blocks, strict=True)
            for z in (x, squared(x))
        )
        return cls(treated, treated2, control1, control2, n_top)

    def genes(self, blocks: Mask, blocks0: Mask) -> Genes:
        """Rank genes by Welch's t between treated and control cells of these blocks."""
        n, n0 = (float(x.weight_bk[0, which].sum()) for x, which in ((self.treated, blocks), (self.control, blocks0)))
        mean, mean0 = self.treated.mean(blocks)[0], self.control.mean(blocks0)[0]
        variance = variance_of(mean, self.treated2.mean(blocks)[0], n)
        variance0 = variance_of(mean0, self.control2.mean(blocks0)[0], n0)
        return Genes.of(*welch(mean, variance, n, mean0, variance0, n0), self.n_top)

    def sd(self, blocks: Mask) -> Floats:
        """Compute standard deviations over treated cells of these blocks, (1, g)."""
        n = self.treated.weight_bk[:, blocks].sum()
        return np.sqrt(variance_of(self.treated.mean(blocks), self.treated2.mean(blocks), n))


def ceiling_of(
    whole: Whole, ways: Mask, ways0: Mask, settings: Settings
) -> tuple[dict[tuple[str, str], float], tuple[Floats, Floats]]:
    """Score one half of the cells as a prediction of the other, and convert to the size of the whole.

    Genes are ranked in the half that is predicted, so that the other half is independent of the choice. Returns also
    means of halves, for the ranks of perturbations.
    """
    x, c = whole.treated, whole.control
    changes, noises, means, sds, signs, shares = [], [], [], [], [], []
    pairs = [(ways[i % len(ways)], ways0[i % len(ways0)]) for i in range(settings.n_halves)]
    for way, way0 in [*pairs, *((~way, ~way0) for way, way0 in pairs)]:
        there = ~way
        here0, there0 = (way0 | True, way0 | True) if settings.shared_controls else (way0, ~way0)
        chosen = whole.genes(there, there0)
        control, control_there = c.mean(here0), c.mean(there0)
        change, real = x.mean(way) - control, x.mean(there) - control_there
        changes.append(Moments.of(change, real, chosen.plain_gs))
        noises.append(0.5 * (control - control_there) ** 2 @ chosen.plain_gs)
        means.append(Moments.of(x.mean(way), x.mean(there), chosen.plain_gs))
        sds.append(Moments.of(whole.sd(way), whole.sd(there), chosen.plain_gs))
        signs.append(sign_agreement(change, real, chosen.weight_gs))
        first, second = (listed(z, chosen.error_g, settings.n_top) for z in (change, real))
        shares.append(overlaps(first, second, settings.n_top))
    full = Moments.stack(changes).mean().doubled(np.mean(noises, 0))
    found = of_means(full, Moments.stack(means).mean().doubled(), settings)
    found |= of_sd(Moments.stack(sds).mean().doubled(), settings)
    found |= of_lists(spearman_brown(_average(signs), 0.5), spearman_brown(_average(shares)), settings)
    shown = [way for way, _ in pairs[:N_RANKED]]
    split = np.concatenate([x.mean(way) for way in shown]), np.concatenate([x.mean(~way) for way in shown])
    return {key: float(clipped(key[1], value)[0]) for key, value in found.items()}, split


def _average(values: Sequence[Floats]) -> Floats:
    """Average over halves, of those where there are such genes."""
    finite = np.isfinite(values)
    total = np.where(finite, np.asarray(values), 0.0).sum(0)
    return np.divide(total, finite.sum(0), out=np.full(total.shape, np.nan), where=finite.any(0))
