"""Score the predictions of one perturbation in one group of cells: estimates, resamples and ceilings.

The measured change is the mean of the treated cells minus that of the control cells. If a prediction is compared with
the same control cells, their sampling noise is in both changes and correlates them. Here the controls are split: one
half is subtracted from the prediction, the other from the treated cells, and the moments are averaged over several
splits in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from vxpress.core.evaluation.blocks import Sums, deal, halves, resamples
from vxpress.core.evaluation.change import (
    Floats,
    Ints,
    Moments,
    overlaps,
    sign_agreement,
    welch,
)
from vxpress.core.evaluation.distances import Drawn
from vxpress.core.evaluation.inputs import Cells, Genes, Prediction, Settings
from vxpress.core.evaluation.measures import clipped, spearman_brown

# resamples are summed in portions of this size, which bounds memory
PORTION = 32
# number of splits into halves from which the ceiling of the ranks is computed
N_RANKED = 4
# scores by set of genes and measure, (resamples,) each
Scores = dict[tuple[str, str], Floats]
Mask = NDArray[np.bool_]
Pair = tuple[Mask, Mask]


@dataclass(frozen=True)
class Scored:
    """Results of a unit: scores of every prediction per resample, ceilings, and vectors over genes."""

    scores: dict[str, Scores]
    ceiling: dict[tuple[str, str], float]
    genes: Genes
    measured_g: Floats
    predicted: dict[str, Floats]
    halves_rg: tuple[Floats, Floats]
    n_observed: int
    n_control: int


def score_unit(
    observed: sparse.csr_matrix,
    control: sparse.csr_matrix,
    predictions: Sequence[Prediction],
    settings: Settings,
    rng: np.random.Generator,
) -> Scored:
    """Score predictions against treated cells, given the control cells of the same group (log values, cells x genes)."""
    n, n0 = observed.shape[0], control.shape[0]
    w_observed, w_control = resamples(n, settings.n_draws, rng), resamples(n0, settings.n_draws, rng)
    block_n, block0_n = deal(n, rng), deal(n0, rng)
    n_blocks, n_blocks0 = int(block_n.max()) + 1, int(block0_n.max()) + 1
    one = np.ones((1, n)), np.ones((1, n0))
    parts = (
        Sums.of(observed, block_n, n_blocks, one[0]),
        Sums.of(_squared(observed), block_n, n_blocks, one[0]),
        Sums.of(control, block0_n, n_blocks0, one[1]),
        Sums.of(_squared(control), block0_n, n_blocks0, one[1]),
    )
    everything, everything0 = np.ones(n_blocks, dtype=bool), np.ones(n_blocks0, dtype=bool)
    genes = _genes(parts, everything, everything0, settings)
    splits = halves(n_blocks0, settings.n_splits, rng)
    pairs = [(everything0, everything0)] if settings.shared_controls else [(a, ~a) for a in (*splits, *~splits)]

    rows = {p.name: _Rows.of(p, control, w_control, block0_n, rng) for p in predictions}
    portions: dict[str, list[Scores]] = {p.name: [] for p in predictions}
    for start in range(0, len(w_observed), PORTION):
        part = slice(start, start + PORTION)
        measured = _Measured.of(observed, control, block0_n, n_blocks0, w_observed[part], w_control[part])
        for p in predictions:
            portions[p.name].append(_portion(p, rows[p.name], measured, part, genes, pairs, settings))
    scores = {
        name: {key: np.concatenate([f[key] for f in found]) for key in found[0]} for name, found in portions.items()
    }

    ways, ways0 = halves(n_blocks, settings.n_halves, rng), halves(n_blocks0, settings.n_halves, rng)
    ceiling, half_means = _ceiling(parts, ways, ways0, settings)
    drawn = Drawn.of(observed, control, genes.order_g, settings.n_top, settings.max_cells, rng)
    for p in predictions:
        if isinstance(p, Cells):
            scores[p.name] |= drawn.scores(p.x_mg, w_observed, rows[p.name].weight_bn, rng)
        else:
            scores[p.name] |= drawn.scores(p.change_g, w_observed, w_control, rng)
    ceiling |= drawn.ceiling(block_n, ways)
    mean, mean0 = parts[0].mean()[0], parts[2].mean()[0]
    predicted = {p.name: p.change(control) for p in predictions}
    return Scored(scores, ceiling, genes, mean - mean0, predicted, half_means, n, n0)


def _squared(x: sparse.csr_matrix) -> sparse.csr_matrix:
    return sparse.csr_matrix((x.data**2, x.indices, x.indptr), shape=x.shape)


Parts = tuple[Sums, Sums, Sums, Sums]


def _variance(mean: Floats, square: Floats, n: Floats | float) -> Floats:
    """Compute an unbiased variance from the mean and the mean square of n values."""
    return np.maximum(square - mean**2, 0.0) * (n / np.maximum(np.asarray(n) - 1.0, 1.0))


def _genes(parts: Parts, blocks: Mask, blocks0: Mask, settings: Settings) -> Genes:
    """Rank genes by Welch's t between treated and control cells of these blocks."""
    x, x2, c, c2 = parts
    n, n0 = float(x.weight_bk[0, blocks].sum()), float(c.weight_bk[0, blocks0].sum())
    mean, mean0 = x.mean(blocks)[0], c.mean(blocks0)[0]
    variance, variance0 = _variance(mean, x2.mean(blocks)[0], n), _variance(mean0, c2.mean(blocks0)[0], n0)
    return Genes.of(*welch(mean, variance, n, mean0, variance0, n0), settings.n_top)


@dataclass(frozen=True)
class _Measured:
    """Means of resampled treated cells and sums of resampled controls, of one portion."""

    mean_bg: Floats
    sd_bg: Floats
    control: Sums
    control_mean_bg: Floats
    control_sd_bg: Floats

    @classmethod
    def of(
        cls,
        observed: sparse.csr_matrix,
        control: sparse.csr_matrix,
        block0_n: Ints,
        n_blocks0: int,
        w_observed: Floats,
        w_control: Floats,
    ) -> _Measured:
        mean, sd = _mean_and_sd(observed, w_observed)
        sums = Sums.of(control, block0_n, n_blocks0, w_control)
        return cls(mean, sd, sums, sums.mean(), _mean_and_sd(control, w_control)[1])


def _mean_and_sd(x: sparse.csr_matrix, weight_bn: Floats) -> tuple[Floats, Floats]:
    whole = np.zeros(x.shape[0], dtype=np.int64)
    total = weight_bn.sum(1)[:, None]
    mean = Sums.of(x, whole, 1, weight_bn).sum_bkg[:, 0] / np.maximum(total, 1.0)
    square = Sums.of(_squared(x), whole, 1, weight_bn).sum_bkg[:, 0] / np.maximum(total, 1.0)
    return mean, np.sqrt(_variance(mean, square, total))


@dataclass(frozen=True)
class _Rows:
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
    ) -> _Rows:
        n_blocks0 = int(block0_n.max()) + 1
        if not isinstance(p, Cells):
            return cls(block0_n[:0], n_blocks0, np.ones((len(w_control), 0)))
        if p.source_m is None:
            n = p.x_mg.shape[0]
            return cls(np.zeros(n, dtype=np.int64), 1, resamples(n, len(w_control) - 1, rng), aligned=False)
        whole = len(p.source_m) == len(block0_n) and len(np.unique(p.source_m)) == len(block0_n)
        base = None if whole else control[p.source_m]
        return cls(block0_n[p.source_m], n_blocks0, w_control[:, p.source_m], base=base)


def _portion(
    p: Prediction,
    rows: _Rows,
    measured: _Measured,
    part: slice,
    genes: Genes,
    pairs: Sequence[Pair],
    settings: Settings,
) -> Scores:
    """Score one portion of resamples."""
    if isinstance(p, Cells):
        mean, sd = _mean_and_sd(p.x_mg, rows.weight_bn[part])
    else:
        mean, sd = measured.control_mean_bg + p.change_g, measured.control_sd_bg
    change_of = _change_of(p, rows, measured, part, mean)
    changes, signs, shares = [], [], []
    for a, b in pairs:
        change, real = change_of(a), measured.mean_bg - measured.control.mean(b)
        changes.append(Moments.of(change, real, genes.plain_gs))
        signs.append(sign_agreement(change, real, genes.weight_gs))
        shares.append(overlaps(change, genes.error_g, genes.order_g, settings.n_top))
    moments = Moments.stack(changes).mean()
    found = _of_means(moments, Moments.of(mean, measured.mean_bg, genes.plain_gs), settings)
    found |= _of_sd(Moments.of(sd, measured.sd_bg, genes.plain_gs), settings)
    return found | _of_lists(np.mean(signs, 0), np.mean(shares, 0), settings)


def _change_of(
    p: Prediction, rows: _Rows, measured: _Measured, part: slice, mean_bg: Floats
) -> Callable[[Mask], Floats]:
    """Return the function that computes the predicted change from the controls of some blocks, (resamples, genes)."""
    if not isinstance(p, Cells):
        change_bg = np.broadcast_to(p.change_g, mean_bg.shape)
        return lambda _: change_bg
    if not rows.aligned:
        return lambda a: mean_bg - measured.control.mean(a)
    sums = Sums.of(p.x_mg, rows.block_n, rows.n_blocks, rows.weight_bn[part])
    base = measured.control
    if rows.base is not None:
        base = Sums.of(rows.base, rows.block_n, rows.n_blocks, rows.weight_bn[part])
    return lambda a: sums.mean(a) - base.mean(a)


def _of_means(change: Moments, mean: Moments, settings: Settings) -> Scores:
    """Compute all scores that follow from moments; the last set of genes is the weighted one."""
    pearson, r2, mse, slope = change.pearson(), change.r2(), change.mse(), change.slope()
    mean_pearson, mean_r2, mean_mse = mean.pearson(), mean.r2(), mean.mse()
    found: Scores = {}
    for i, name in enumerate(settings.sets):
        found |= {
            (name, "pearson2_mean"): mean_pearson[..., i] ** 2,
            (name, "r2_mean"): mean_r2[..., i],
            (name, "mse_mean"): mean_mse[..., i],
            (name, "pearson_change"): pearson[..., i],
            (name, "pearson2_change"): pearson[..., i] ** 2,
            (name, "r2_change"): r2[..., i],
            (name, "mse_change"): mse[..., i],
            (name, "slope_change"): slope[..., i],
        }
    return found | {("all", "weighted_mse_change"): mse[..., -1], ("all", "weighted_r2_change"): r2[..., -1]}


def _of_sd(moments: Moments, settings: Settings) -> Scores:
    r2 = moments.r2()
    return {(name, "r2_sd"): r2[..., i] for i, name in enumerate(settings.sets)}


def _of_lists(sign: Floats, share: Floats, settings: Settings) -> Scores:
    """Name the agreement of signs (the last set are the significant genes) and the overlaps of lists."""
    found: Scores = {("all", "sign_agreement"): sign[..., -1]}
    for i, k in enumerate(settings.n_top):
        found |= {(f"top{k}", "sign_agreement"): sign[..., i + 1], (f"top{k}", "deg_overlap"): share[..., i]}
    return found


def _ceiling(
    parts: Parts, ways: Mask, ways0: Mask, settings: Settings
) -> tuple[dict[tuple[str, str], float], tuple[Floats, Floats]]:
    """Score one half of the cells as a prediction of the other, and convert to the size of the whole.

    Genes are ranked in the half that is predicted, so that the other half is independent of the choice. Returns also
    means of halves, for the ranks of perturbations.
    """
    x, x2, c, _ = parts
    changes, noises, means, sds, signs, shares = [], [], [], [], [], []
    pairs = [(ways[i % len(ways)], ways0[i % len(ways0)]) for i in range(settings.n_halves)]
    for way, way0 in [*pairs, *((~way, ~way0) for way, way0 in pairs)]:
        there = ~way
        here0, there0 = (way0 | True, way0 | True) if settings.shared_controls else (way0, ~way0)
        chosen = _genes(parts, there, there0, settings)
        control, control_there = c.mean(here0), c.mean(there0)
        change, real = x.mean(way) - control, x.mean(there) - control_there
        changes.append(Moments.of(change, real, chosen.plain_gs))
        noises.append(0.5 * (control - control_there) ** 2 @ chosen.plain_gs)
        means.append(Moments.of(x.mean(way), x.mean(there), chosen.plain_gs))
        sds.append(Moments.of(_sd(x, x2, way), _sd(x, x2, there), chosen.plain_gs))
        signs.append(sign_agreement(change, real, chosen.weight_gs))
        shares.append(overlaps(change, chosen.error_g, chosen.order_g, settings.n_top))
    full = Moments.stack(changes).mean().doubled(np.mean(noises, 0))
    found = _of_means(full, Moments.stack(means).mean().doubled(), settings)
    found |= _of_sd(Moments.stack(sds).mean().doubled(), settings)
    found |= _of_lists(spearman_brown(_average(signs), 0.5), spearman_brown(_average(shares)), settings)
    first = [way for way, _ in pairs[:N_RANKED]]
    split = np.concatenate([x.mean(way) for way in first]), np.concatenate([x.mean(~way) for way in first])
    return {key: float(clipped(key[1], value)[0]) for key, value in found.items()}, split


def _average(values: Sequence[Floats]) -> Floats:
    """Average over halves, of those where there are such genes."""
    finite = np.isfinite(values)
    total = np.where(finite, np.asarray(values), 0.0).sum(0)
    return np.divide(total, finite.sum(0), out=np.full(total.shape, np.nan), where=finite.any(0))


def _sd(x: Sums, x2: Sums, blocks: Mask | None = None) -> Floats:
    n = x.weight_bk.sum() if blocks is None else x.weight_bk[:, blocks].sum()
    return np.sqrt(_variance(x.mean(blocks), x2.mean(blocks), n))
