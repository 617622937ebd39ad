"""Differential expression between groups: sums of counts, and the posterior of a log fold change given these sums.

A unit is a set of cells that share group, stratum (batch) and sample (donor). The statistics of a gene are sums over
the cells of a unit, with the weights of a negative binomial score. Every comparison of groups is then arithmetic on a
few small arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# number of molecules to which the model's expectation is equivalent; chosen in benchmarks/differential_expression.py
PRIOR_COUNTS = 10.0
# smaller tail probabilities of the beta distribution may underflow
SMALLEST_TAIL = 1e-280
# the weight of a cell depends on the bin of its size factor: any weights are valid, and the sums stay exact
N_BINS = 32


@dataclass(frozen=True)
class Units:
    """Units: group, stratum and sample of each, its number of cells, and the unit of each cell.

    ``unit_n`` is -1 for a cell that is not included.
    """

    unit_n: Ints
    group_m: Ints
    stratum_m: Ints
    sample_m: Ints
    n_m: Ints

    @classmethod
    def of(cls, group_n: Ints, stratum_n: Ints, sample_n: Ints) -> Units:
        """Form units from the codes of cells; cells with group -1 are excluded."""
        part = group_n >= 0
        codes = np.stack([group_n, stratum_n, sample_n], axis=1)[part]
        found, unit, n_m = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        unit_n = np.full(len(group_n), -1, dtype=np.int64)
        unit_n[part] = unit.reshape(-1)
        return cls(unit_n, found[:, 0], found[:, 1], found[:, 2], n_m.astype(np.int64))

    def __len__(self) -> int:
        return len(self.n_m)


@dataclass(frozen=True)
class Weights:
    """Weights of molecules per size factor bin and gene, and sums of (squared) size factors per unit and bin."""

    bin_n: Ints
    weight_bg: Floats
    library_mb: Floats
    library2_mb: Floats

    @classmethod
    def of(cls, library_n: Floats, units: Units, alpha_g: Floats, rate_g: Floats) -> Weights:
        """Compute the weights 1 / (1 + alpha l rate) of a negative binomial score with variance mu + alpha mu^2."""
        part = units.unit_n >= 0
        inside = library_n[part]
        edges = np.unique(np.quantile(inside, np.linspace(0, 1, N_BINS + 1))[1:-1])
        bin_n = np.searchsorted(edges, library_n, side="right")
        n_bins = len(edges) + 1
        code = units.unit_n[part] * n_bins + bin_n[part]
        size = len(units) * n_bins
        number_b = np.maximum(np.bincount(bin_n[part], minlength=n_bins), 1)
        middle_b = np.bincount(bin_n[part], inside, minlength=n_bins) / number_b
        return cls(
            bin_n,
            1.0 / (1.0 + middle_b[:, None] * (alpha_g * rate_g)),
            np.bincount(code, inside, minlength=size).reshape(len(units), n_bins).astype(np.float64),
            np.bincount(code, inside**2, minlength=size).reshape(len(units), n_bins).astype(np.float64),
        )


@dataclass(frozen=True)
class Evidence:
    """Weighted molecules of every unit and gene, their exposure, and the variance of their sum.

    ``floor_g`` is the variance per molecule if molecules were independent. The exposure of a gene is 0 in units whose cells
    did not measure it.
    """

    units: Units
    counts_mg: Floats
    exposure_mg: Floats
    variance_mg: Floats
    floor_g: Floats

    def where_measured(self, seen_mg: NDArray[np.bool_], coverage_m: Floats) -> Evidence:
        """Return the evidence of cells with gene panels; ``seen_mg`` are the genes that each unit measured.

        Other genes say nothing. The size factors of a unit count the share ``coverage_m`` of the molecules that its cells would have
        of all genes, so its exposure is divided by it.
        """
        return Evidence(
            self.units,
            np.where(seen_mg, self.counts_mg, 0.0),
            np.where(seen_mg, self.exposure_mg / np.maximum(coverage_m, 1e-3)[:, None], 0.0),
            np.where(seen_mg, self.variance_mg, 0.0),
            self.floor_g,
        )


class Tally:
    """Sums the counts of cells, block by block."""

    def __init__(self, units: Units, weights: Weights, n_genes: int) -> None:
        self.units, self.weights = units, weights
        self.sums = np.zeros((4, len(units), n_genes))

    def add(self, rows: slice, row_k: Ints, gene_k: Ints, x_k: Floats, library_n: Floats) -> None:
        """Add entries ``x_k`` of the cells ``rows``.

        ``row_k`` is the row within these, and ``gene_k`` of -1 is skipped.
        """
        n_genes = self.sums.shape[2]
        unit_k = self.units.unit_n[rows][row_k]
        keep = (unit_k >= 0) & (gene_k >= 0)
        if not keep.all():
            unit_k, row_k, gene_k, x_k = unit_k[keep], row_k[keep], gene_k[keep], x_k[keep]
        w_k = self.weights.weight_bg[self.weights.bin_n[rows][row_k], gene_k]
        code_k = unit_k * n_genes + gene_k
        wx_k = w_k * x_k
        for i, value_k in enumerate((wx_k, wx_k**2, wx_k * w_k * library_n[rows][row_k], wx_k * w_k)):
            self.sums[i] += np.bincount(code_k, value_k, minlength=self.sums[i].size).reshape(self.sums[i].shape)

    def evidence(self) -> Evidence:
        """Return the sums, with the variance about the rate of each unit."""
        counts, squares, cross, poisson = self.sums
        exposure = self.weights.library_mb @ self.weights.weight_bg
        exposure2 = self.weights.library2_mb @ self.weights.weight_bg**2
        rate = counts / exposure
        n_m1 = self.units.n_m[:, None]
        variance = np.maximum(squares - 2 * rate * cross + rate**2 * exposure2, 0.0) * n_m1 / np.maximum(n_m1 - 1, 1)
        return Evidence(self.units, counts, exposure, variance, _ratio(poisson.sum(0), counts.sum(0)))


def expected_evidence(units: Units, weights: Weights, mean_mg: Floats, alpha_g: Floats) -> Evidence:
    """Compute the evidence if every unit had exactly its expected number of molecules, with the expected variance."""
    exposure = weights.library_mb @ weights.weight_bg
    weight2 = weights.weight_bg**2
    poisson = mean_mg * (weights.library_mb @ weight2)
    variance = poisson + alpha_g * mean_mg**2 * (weights.library2_mb @ weight2)
    counts = mean_mg * exposure
    return Evidence(units, counts, exposure, variance, _ratio(poisson.sum(0), counts.sum(0)))


@dataclass(frozen=True)
class Prior:
    """The model's expectation for a comparison: mean expression of both sides, and the variance of their log ratio.

    The variance is that of means over cells and draws. If cells differ or are few, it is larger, and the model counts
    less.
    """

    up_g: Floats
    down_g: Floats
    variance_g: Floats

    @property
    def share_g(self) -> Floats:
        """Share of the first side if exposures were equal."""
        return self.up_g / (self.up_g + self.down_g)

    @property
    def counts_g(self) -> Floats:
        """Number of molecules to which the model is equivalent: with a molecules, log odds have variance 4 / a."""
        return PRIOR_COUNTS / (1 + PRIOR_COUNTS / 4 * self.variance_g)


@dataclass(frozen=True)
class Comparison:
    """Per gene: log2 fold change, signed score, and two-sided p-value of the score under the normal distribution."""

    lfc_g: Floats
    score_g: Floats
    pval_g: Floats


@dataclass(frozen=True)
class Contrast:
    """Two sets of units, in the strata where both have cells.

    ``unit_m`` are their indices, ``up_m`` marks the first.
    """

    unit_m: Ints
    up_m: NDArray[np.bool_]
    stratum_m: Ints
    confounded: bool

    @classmethod
    def of(cls, units: Units, group: int, reference: int | None) -> Contrast:
        """Compare ``group`` with another one, or with all others; a single stratum is used if no stratum has both."""
        up = units.group_m == group
        down = ~up if reference is None else units.group_m == reference
        shared = np.intersect1d(units.stratum_m[up], units.stratum_m[down])
        confounded = len(shared) == 0
        chosen = (up | down) if confounded else (up | down) & np.isin(units.stratum_m, shared)
        index = np.flatnonzero(chosen)
        stratum = np.zeros(len(index), np.int64)
        if not confounded:
            stratum = np.unique(units.stratum_m[index], return_inverse=True)[1].reshape(-1)
        return cls(index, up[index], stratum, confounded)

    def sample_df(self, units: Units) -> int:
        """Compute the number of samples minus the number of means: one, or two if no sample has cells on both sides."""
        sample_m = units.sample_m[self.unit_m]
        paired = len(np.intersect1d(sample_m[self.up_m], sample_m[~self.up_m])) > 0
        return len(np.unique(sample_m)) - (1 if paired else 2)


def compare(evidence: Evidence, contrast: Contrast, expected: Prior, *, delta: float, by_sample: bool) -> Comparison:
    """Compute the posterior of the log2 fold change of every gene, against the threshold ``delta``.

    Given the molecules of a stratum, the number in the first set is binomial with odds (fold change) x (ratio of
    exposures). With counts divided by their overdispersion, the posterior of the share is a beta distribution. The
    model enters as one additional stratum with up to ``PRIOR_COUNTS`` molecules, at the fold change that it expects. A stratum
    in which one side did not measure a gene is not used for it; if there is no other, the model is all there is.
    """
    m, up, stratum = contrast.unit_m, contrast.up_m, contrast.stratum_m
    exposure_mg = evidence.exposure_mg[m]
    n_strata = int(stratum.max()) + 1

    def per_stratum(value_mg: Floats, which: NDArray[np.bool_]) -> Floats:
        out = np.zeros((n_strata, value_mg.shape[1]))
        np.add.at(out, stratum[which], value_mg[which])
        return out

    l_up, l_down = per_stratum(exposure_mg, up), per_stratum(exposure_mg, ~up)
    both = (l_up > 0) & (l_down > 0)
    l_up, l_down = np.where(both, l_up, 1.0), np.where(both, l_down, 1.0)
    counts_mg, variance_mg = (np.where(both[stratum], x[m], 0.0) for x in (evidence.counts_mg, evidence.variance_mg))
    x_up, x_down = per_stratum(counts_mg, up), per_stratum(counts_mg, ~up)
    share = l_up / (l_up + l_down)
    total = x_up + x_down
    information_g = (total * share * (1 - share)).sum(0)
    parts_up = ((1 - share) ** 2 * per_stratum(variance_mg, up)).sum(0)
    parts_down = (share**2 * per_stratum(variance_mg, ~up)).sum(0)
    n_up, n_down = (float(evidence.units.n_m[m][which].sum()) for which in (up, ~up))
    df_g = _welch(parts_up, parts_down, n_up - 1, n_down - 1)
    phi_g = np.maximum(_ratio(parts_up + parts_down, information_g), _ratio(variance_mg.sum(0), total.sum(0)))
    # Mantel and Haenszel's estimate of the common fold change
    mh_up, mh_down = (x_up * (1 - share)).sum(0), (x_down * share).sum(0)
    if by_sample:
        fold = (mh_up + 0.5) / (mh_down + 0.5)
        spread_g, df = _between_samples(
            evidence, contrast, counts_mg, exposure_mg, share, fold, total / (fold * l_up + l_down)
        )
        phi_g, df_g = np.maximum(phi_g, _ratio(spread_g, information_g)), np.minimum(df_g, df)
    phi_g = np.maximum(phi_g, np.maximum(evidence.floor_g, 1e-12))
    prior, worth_g = expected.share_g, expected.counts_g
    half = worth_g / 2
    lfc_g = np.log2((mh_up / phi_g + half * prior) / (mh_down / phi_g + half * (1 - prior)))
    number_g = total.sum(0) / phi_g + worth_g
    up_g = (x_up.sum(0) / phi_g + half) / number_g

    def share_at(log2_fold: float) -> Floats:
        fold = 2.0**log2_fold
        data = (total * (fold * l_up / (fold * l_up + l_down))).sum(0) / phi_g
        return (data + worth_g * fold * (1 - prior) / (fold * (1 - prior) + prior)) / number_g

    # strata with different expected shares have less spread than one binomial with the same mean
    even_g = share_at(0.0)
    size_g = number_g**2 * even_g * (1 - even_g) / (information_g / phi_g + worth_g * prior * (1 - prior))
    a, b = up_g * size_g, (1 - up_g) * size_g
    z_up, z_down = _beta_z(a, b, share_at(delta)), _beta_z(b, a, 1 - share_at(-delta))
    z_g = np.maximum(np.maximum(z_up, z_down), 0.0)
    z_g = np.sqrt(df_g * np.log1p(z_g**2 / df_g)) * (8 * df_g + 1) / (8 * df_g + 3)
    score_g = np.where(z_up >= z_down, z_g, -z_g)
    return Comparison(lfc_g, score_g, 2 * special.ndtr(-np.abs(score_g)))


def _between_samples(
    evidence: Evidence,
    contrast: Contrast,
    counts_mg: Floats,
    exposure_mg: Floats,
    share: Floats,
    fold: Floats,
    rate: Floats,
) -> tuple[Floats, float]:
    """Compute the variance of the score between samples, and its degrees of freedom."""
    up, stratum = contrast.up_m, contrast.stratum_m
    part = share[stratum]
    expected = exposure_mg * rate[stratum] * np.where(up[:, None], fold, 1.0)
    side = np.where(up[:, None], 1 - part, -part)
    names, sample = np.unique(evidence.units.sample_m[contrast.unit_m], return_inverse=True)
    sample, n = sample.reshape(-1), len(names)
    left = contrast.sample_df(evidence.units)
    score_dg, leverage_dg = np.zeros((2, n, share.shape[1]))
    np.add.at(score_dg, sample, side * (counts_mg - expected))
    information_mg = side**2 * expected
    for which in [up | ~up] if left == n - 1 else [up, ~up]:
        np.add.at(leverage_dg, sample[which], _ratio(information_mg[which], information_mg[which].sum(0)))
    # as in the jackknife, the residual of a sample is from an estimate without this sample
    jackknife_dg = score_dg / (1 - np.minimum(leverage_dg, 0.99))
    return (jackknife_dg**2).sum(0) * max(left, 1) / n, float(max(left, 1))


def _welch(v1: Floats, v2: Floats, n1: float, n2: float) -> Floats:
    """Compute Satterthwaite's degrees of freedom of a sum of two variances."""
    n1, n2 = max(n1, 1.0), max(n2, 1.0)
    below = v1**2 / n1 + v2**2 / n2
    return np.where(below > 0, (v1 + v2) ** 2 / np.where(below > 0, below, 1.0), n1 + n2)


def _beta_z(a: Floats, b: Floats, x: Floats) -> Floats:
    """Compute the normal quantile z with P(Beta(a, b) <= x) = P(N(0, 1) <= -z)."""
    tail = special.betainc(a, b, np.clip(x, 0.0, 1.0))
    z = -special.ndtri(np.clip(tail, SMALLEST_TAIL, 1 - 1e-16))
    share = a / (a + b)
    deviance = 2 * (a + b) * (special.rel_entr(share, x) + special.rel_entr(1 - share, 1 - x))
    return np.where(tail < SMALLEST_TAIL, np.maximum(np.sqrt(np.maximum(deviance, 0.0)), z), z)


def _ratio(above: Floats, below: Floats) -> Floats:
    """Divide, with result 0 where the denominator is 0."""
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(above.shape, below.shape)), where=below > 0)
