"""Scores of resampled cells: of the whole data, and with genes chosen in one half of the treated cells and scored in the other.

Genes that are chosen because they change most in some cells change less in others. A comparison of two predictions on
the cells that chose the genes would find differences where there are none, so the difference from a floor is computed
with genes and weights of the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from vxpress.core.evaluation.blocks import Sums, resamples
from vxpress.core.evaluation.ceiling import squared, variance_of
from vxpress.core.evaluation.change import Floats, Ints, Moments, listed, overlaps, sign_agreement
from vxpress.core.evaluation.inputs import Cells, Genes, Prediction, Settings
from vxpress.core.evaluation.naming import Scores, of_lists, of_means, of_sd

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Trial:
    """Halves of the controls, for the predicted and the measured change, a half of the treated cells, and genes of the other."""

    predicted: Mask
    measured: Mask
    treated: Mask
    genes: Genes


@dataclass(frozen=True)
class Measured:
    """Sums of resampled treated and control cells, of one portion, and which genes change most in each resample."""

    treated: Sums
    mean_bg: Floats
    sd_bg: Floats
    control: Sums
    control_mean_bg: Floats
    control_sd_bg: Floats
    listed_kbg: Mask

    @classmethod
    def of(
        cls,
        observed: sparse.csr_matrix,
        control: sparse.csr_matrix,
        blocks: tuple[Ints, Ints],
        weights: tuple[Floats, Floats],
        error_g: Floats,
        n_top: tuple[int, ...],
    ) -> Measured:
        treated, sums = (
            Sums.of(x, block, int(block.max()) + 1, weight)
            for x, block, weight in zip((observed, control), blocks, weights, strict=True)
        )
        mean, mean0 = treated.mean(), sums.mean()
        sd, sd0 = sd_of(observed, mean, weights[0]), sd_of(control, mean0, weights[1])
        return cls(treated, mean, sd, sums, mean0, sd0, listed(mean - mean0, error_g, n_top))


def weighted_mean(x: sparse.csr_matrix, weight_bn: Floats) -> Floats:
    """Compute the mean over resampled cells, (resamples, genes)."""
    total = np.maximum(weight_bn.sum(1), 1.0)[:, None]
    return np.asarray((x.T @ np.ascontiguousarray(weight_bn.T)).T / total)


def sd_of(x: sparse.csr_matrix, mean_bg: Floats, weight_bn: Floats) -> Floats:
    """Compute the standard deviation over resampled cells, (resamples, genes)."""
    return np.sqrt(variance_of(mean_bg, weighted_mean(squared(x), weight_bn), weight_bn.sum(1)[:, None]))


@dataclass(frozen=True)
class Rows:
    """Blocks and resampling weights of predicted cells, which follow their control cells.

    ``base`` are the control cells of the predicted cells, row by row; None if they are all controls, once each.
    """

    block_n: Ints
    n_blocks: int
    weight_bn: Floats
    aligned: bool = True
    base: sparse.csr_matrix | None = None

    @classmethod
    def of(
        cls, p: Prediction, control: sparse.csr_matrix, w_control: Floats, block0_n: Ints, rng: np.random.Generator
    ) -> Rows:
        n_blocks0 = int(block0_n.max()) + 1
        if not isinstance(p, Cells):
            return cls(block0_n[:0], n_blocks0, np.ones((len(w_control), 0)))
        if p.source_m is None:
            n = p.x_mg.shape[0]
            return cls(np.zeros(n, dtype=np.int64), 1, resamples(n, len(w_control) - 1, rng), aligned=False)
        whole = len(p.source_m) == len(block0_n) and len(np.unique(p.source_m)) == len(block0_n)
        base = None if whole else control[p.source_m]
        return cls(block0_n[p.source_m], n_blocks0, w_control[:, p.source_m], base=base)


@dataclass(frozen=True)
class Found:
    """Moments, agreement of signs and overlaps of lists of a prediction; ``cross`` with genes of other cells."""

    change: Moments
    mean: Moments
    sd: Moments
    sign_bs: Floats
    share_bk: Floats
    cross_change: Moments
    cross_mean: Moments
    cross_sign_bs: Floats

    @classmethod
    def join(cls, found: Sequence[Found]) -> Found:
        """Append the resamples of portions."""
        joined: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            values = [getattr(one, name) for one in found]
            joined[name] = Moments.join(values) if isinstance(values[0], Moments) else np.concatenate(values)
        return cls(**joined)

    def scores(self, settings: Settings) -> Scores:
        """Return the scores of all resamples, the data itself first."""
        found = of_means(self.change, self.mean, settings) | of_sd(self.sd, settings)
        return found | of_lists(self.sign_bs, self.share_bk, settings)

    def comparable(self, settings: Settings) -> Scores:
        """Return the scores by which two predictions can be compared: those of all genes, and those with genes of other cells."""
        scores = self.scores(settings)
        cross = of_means(self.cross_change, self.cross_mean, settings)
        cross |= of_lists(self.cross_sign_bs, self.share_bk, settings)
        uniform = {
            key: scores[key]
            for key in scores
            if key[1] == "deg_overlap" or (key[0] == "all" and key[1] != "sign_agreement" and "weighted" not in key[1])
        }
        return cross | uniform


def score_portion(
    p: Prediction,
    rows: Rows,
    measured: Measured,
    part: slice,
    genes: Genes,
    trials: Sequence[Trial],
    settings: Settings,
) -> Found:
    """Score one portion of resamples."""
    if isinstance(p, Cells):
        mean = weighted_mean(p.x_mg, rows.weight_bn[part])
        sd = sd_of(p.x_mg, mean, rows.weight_bn[part])
    else:
        mean, sd = measured.control_mean_bg + p.change_g, measured.control_sd_bg
    change_of = _change_of(p, rows, measured, part, mean)
    changes, signs, shares, cross_changes, cross_means, cross_signs = [], [], [], [], [], []
    for trial in trials:
        change, control = change_of(trial.predicted), measured.control.mean(trial.measured)
        real, half = measured.mean_bg - control, measured.treated.mean(trial.treated)
        changes.append(Moments.of(change, real, genes.plain_gs))
        signs.append(sign_agreement(change, real, genes.weight_gs))
        shares.append(overlaps(listed(change, genes.error_g, settings.n_top), measured.listed_kbg, settings.n_top))
        cross_changes.append(Moments.of(change, half - control, trial.genes.plain_gs))
        cross_means.append(Moments.of(mean, half, trial.genes.plain_gs))
        cross_signs.append(sign_agreement(change, half - control, trial.genes.weight_gs))
    return Found(
        Moments.stack(changes).mean(),
        Moments.of(mean, measured.mean_bg, genes.plain_gs),
        Moments.of(sd, measured.sd_bg, genes.plain_gs),
        np.mean(signs, 0),
        np.mean(shares, 0),
        Moments.stack(cross_changes).mean(),
        Moments.stack(cross_means).mean(),
        np.mean(cross_signs, 0),
    )


def _change_of(p: Prediction, rows: Rows, measured: Measured, part: slice, mean_bg: Floats) -> Callable[[Mask], Floats]:
    """Return the function that computes the predicted change from the controls of some blocks, (resamples, genes)."""
    if p.change_g is not None:
        change_bg = np.broadcast_to(p.change_g, mean_bg.shape)
        return lambda _: change_bg
    if not rows.aligned:
        return lambda a: mean_bg - measured.control.mean(a)
    sums = Sums.of(p.x_mg, rows.block_n, rows.n_blocks, rows.weight_bn[part])
    base = measured.control
    if rows.base is not None:
        base = Sums.of(rows.base, rows.block_n, rows.n_blocks, rows.weight_bn[part])
    return lambda a: sums.mean(a) - base.mean(a)
