"""Posterior of a fold change, compared with closed forms, scipy's tests and calibration under a null."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from vxpress.core.inference import differential
from vxpress.core.inference.differential import (
    Contrast,
    Evidence,
    Prior,
    Tally,
    Units,
    Weights,
    compare,
    expected_evidence,
)


def tally(x_ng: np.ndarray, library_n: np.ndarray, units: Units, alpha_g: np.ndarray) -> Evidence:
    weights = Weights.of(library_n, units, alpha_g, x_ng.sum(0) / library_n.sum())
    out = Tally(units, weights, x_ng.shape[1])
    for start in range(0, len(x_ng), 37):
        rows = slice(start, min(start + 37, len(x_ng)))
        row_k, gene_k = np.nonzero(x_ng[rows])
        out.add(rows, row_k, gene_k, x_ng[rows][row_k, gene_k].astype(float), library_n)
    return out.evidence()


def ones(n: int) -> np.ndarray:
    return np.ones(n)


def codes(*parts: tuple[int, int]) -> np.ndarray:
    return np.concatenate([np.full(n, code) for code, n in parts]).astype(np.int64)


def even(n: int) -> Prior:
    return Prior(np.ones(n), np.ones(n), np.zeros(n))


def zeros(n: int) -> np.ndarray:
    return np.zeros(n, dtype=np.int64)


def test_sums_equal_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    library = rng.lognormal(6, 0.5, 150)
    x = rng.poisson(library[:, None] * rng.uniform(1e-4, 1e-2, 7))
    group, stratum = rng.integers(-1, 3, 150), rng.integers(0, 2, 150)
    units = Units.of(group, stratum, stratum)
    alpha = rng.uniform(0, 2, 7)
    weights = Weights.of(library, units, alpha, x.sum(0) / library.sum())
    found = tally(x, library, units, alpha)
    for m in range(len(units)):
        cells = (group == units.group_m[m]) & (stratum == units.stratum_m[m])
        assert units.n_m[m] == cells.sum()
        w = weights.weight_bg[weights.bin_n[cells]]
        counts, exposure = (w * x[cells]).sum(0), (w * library[cells, None]).sum(0)
        residual = w * (x[cells] - library[cells, None] * counts / exposure)
        np.testing.assert_allclose(found.counts_mg[m], counts)
        np.testing.assert_allclose(found.exposure_mg[m], exposure)
        np.testing.assert_allclose(
            found.variance_mg[m], (residual**2).sum(0) * cells.sum() / (cells.sum() - 1), rtol=1e-6
        )


def test_without_a_prior_the_tail_is_that_of_the_binomial_test(monkeypatch):
    # Poisson counts of equal cells: given the total, the share is binomial; the posterior gives the mid-p value
    monkeypatch.setattr(differential, "PRIOR_COUNTS", 1.0)
    n_up, n_down = 40_000, 60_000
    counts = np.array([[3.0, 40.0, 90.0], [12.0, 60.0, 60.0]])
    units = Units.of(codes((0, n_up), (1, n_down)), zeros(n_up + n_down), zeros(n_up + n_down))
    variance = counts.sum(0) * np.array([[0.4], [0.6]])
    evidence = Evidence(units, counts, np.array([[n_up] * 3, [n_down] * 3], float), variance, ones(3))
    found = compare(evidence, Contrast.of(units, 0, None), even(3), delta=0.0, by_sample=False)
    total = counts.sum(0)
    distribution = stats.binom(total, n_up / (n_up + n_down))
    mid = [
        distribution.sf(counts[0]) + 0.5 * distribution.pmf(counts[0]),
        distribution.cdf(counts[0]) - 0.5 * distribution.pmf(counts[0]),
    ]
    np.testing.assert_allclose(found.pval_g, np.minimum(2 * np.minimum(*mid), 1), rtol=0.25)
    assert (np.sign(found.score_g) == [-1, 1, 1])[[0, 2]].all()


def test_many_molecules_give_the_fold_change_of_the_counts_and_few_that_of_the_model():
    units = Units.of(codes((0, 50_000), (1, 50_000)), zeros(100_000), zeros(100_000))
    exposure = np.full((2, 2), 1000.0)
    many = Evidence(units, np.array([[4e6, 0.0], [1e6, 0.0]]), exposure, np.array([[4e6, 0.0], [1e6, 0.0]]), ones(2))
    found = compare(
        many, Contrast.of(units, 0, 1), Prior(np.array([1.0, 8.0]), ones(2), np.zeros(2)), delta=0.1, by_sample=False
    )
    np.testing.assert_allclose(found.lfc_g, [2.0, 3.0], atol=1e-4)
    assert found.score_g[0] > 37  # the tail probability underflows
    # without molecules the result is that of the model alone; with fewer decoded cells it is more uncertain
    unsure = compare(
        many, Contrast.of(units, 0, 1), Prior(np.array([1.0, 8.0]), ones(2), ones(2)), delta=0.1, by_sample=False
    )
    assert 0.3 > unsure.pval_g[1] > 5 * found.pval_g[1]


def test_swapped_groups_give_the_opposite_result():
    rng = np.random.default_rng(1)
    x, library = rng.negative_binomial(1, 0.3, (120, 20)), rng.uniform(500, 1500, 120)
    units = Units.of(codes((0, 50), (1, 70)), rng.integers(0, 3, 120), zeros(120))
    evidence = tally(x, library, units, np.full(20, 1.0))
    prior = rng.uniform(0.5, 2, (2, 20))
    there = compare(
        evidence, Contrast.of(units, 0, 1), Prior(prior[0], prior[1], np.zeros(20)), delta=0.2, by_sample=False
    )
    back = compare(
        evidence, Contrast.of(units, 1, 0), Prior(prior[1], prior[0], np.zeros(20)), delta=0.2, by_sample=False
    )
    np.testing.assert_allclose(there.lfc_g, -back.lfc_g, atol=1e-10)
    np.testing.assert_allclose(there.score_g, -back.score_g, atol=1e-8)


def test_p_values_of_random_halves_are_uniform_or_larger():
    rng = np.random.default_rng(2)
    library = rng.lognormal(7, 0.4, 300)
    rate = rng.lognormal(-7.5, 1.5, 400)
    alpha = rng.uniform(0.1, 2, 400)
    x = rng.negative_binomial(1 / alpha, 1 / (1 + alpha * library[:, None] * rate))
    found = []
    for _ in range(20):
        group = rng.permutation(codes((0, 100), (1, 200)))
        units = Units.of(group, zeros(300), zeros(300))
        evidence = tally(x, library, units, alpha)
        found.append(compare(evidence, Contrast.of(units, 0, None), even(400), delta=0.0, by_sample=False).pval_g)
    pvals = np.concatenate(found)
    assert 0.02 < (pvals < 0.05).mean() < 0.06
    assert (pvals < 1e-3).mean() < 2e-3


def test_a_batch_effect_does_not_appear_as_a_difference_between_groups():
    # the batch with more cells of group 0 has tenfold expression: with pooled batches, every gene differs
    rng = np.random.default_rng(3)
    stratum = codes((0, 200), (1, 200))
    group = np.concatenate([codes((0, 150), (1, 50)), codes((0, 50), (1, 150))])
    x = rng.poisson(np.where(stratum == 0, 5.0, 0.5)[:, None] * np.ones(200))
    library = np.full(400, 1000.0)
    kept = {}
    for name, strata in (("pooled", zeros(400)), ("within", stratum)):
        units = Units.of(group, strata, zeros(400))
        found = compare(
            tally(x, library, units, np.zeros(200)),
            Contrast.of(units, 0, 1),
            even(200),
            delta=0.0,
            by_sample=False,
        )
        kept[name] = ((found.pval_g < 0.05).mean(), np.abs(np.median(found.lfc_g)))
    assert kept["pooled"][0] == 1.0
    assert kept["within"][0] < 0.08
    assert kept["within"][1] < 0.02


@pytest.mark.parametrize("paired", [True, False])
def test_samples_that_differ_are_the_units_of_replication(paired):
    rng = np.random.default_rng(4)
    n_samples, n_genes = 8, 400
    sample = np.repeat(np.arange(n_samples), 60)
    group = (np.tile([0, 1], 30 * n_samples) if paired else sample % 2).astype(np.int64)
    # each sample has its own level; if samples have both groups, also its own difference
    level = rng.lognormal(0, 0.5, (n_samples, n_genes))
    own = rng.lognormal(0, 0.5, (n_samples, n_genes)) if paired else np.ones((n_samples, n_genes))
    mean = 3 * level[sample] * np.where(group[:, None] == 0, own[sample], 1.0)
    x, library = rng.poisson(mean), np.full(len(sample), 1000.0)
    units = Units.of(group, sample if paired else zeros(len(sample)), sample)
    evidence, contrast = tally(x, library, units, np.zeros(n_genes)), Contrast.of(units, 0, 1)
    assert contrast.sample_df(units) == (7 if paired else 6)
    called = {
        by: (compare(evidence, contrast, even(n_genes), delta=0.0, by_sample=by).pval_g < 0.05).mean()
        for by in (True, False)
    }
    assert called[False] > 0.3
    assert called[True] < 0.09


def test_the_threshold_is_the_boundary_of_the_null():
    # a true change of exactly delta is called in one direction about half as often as alpha
    rng = np.random.default_rng(5)
    n = 200
    x = np.concatenate([rng.poisson(20 * 2**0.5, (n, 3000)), rng.poisson(20.0, (n, 3000))])
    units = Units.of(codes((0, n), (1, n)), zeros(2 * n), zeros(2 * n))
    evidence = tally(x, np.full(2 * n, 1000.0), units, np.zeros(3000))
    found = compare(evidence, Contrast.of(units, 0, 1), even(3000), delta=0.5, by_sample=False)
    assert 0.015 < (found.pval_g < 0.05).mean() < 0.035
    assert (
        compare(evidence, Contrast.of(units, 0, 1), even(3000), delta=0.7, by_sample=False).pval_g > 0.9
    ).mean() > 0.99


def test_groups_that_share_no_stratum_are_compared_over_all():
    units = Units.of(codes((0, 5), (1, 5), (2, 5)), codes((0, 5), (1, 5), (1, 5)), zeros(15))
    assert Contrast.of(units, 0, None).confounded
    assert Contrast.of(units, 0, None).stratum_m.max() == 0
    assert not Contrast.of(units, 1, 2).confounded
    # strata without one of the two groups are left out
    assert (units.group_m[Contrast.of(units, 1, None).unit_m] != 0).all()


def test_the_models_expectation_alone_is_as_uncertain_as_counts_would_be():
    rng = np.random.default_rng(6)
    library, mean, alpha = rng.uniform(500, 2000, 200), np.array([[2e-3, 1e-4], [1e-3, 1e-4]]), np.array([0.5, 0.0])
    units = Units.of(codes((0, 100), (1, 100)), zeros(200), zeros(200))
    weights = Weights.of(library, units, alpha, mean.mean(0))
    found = expected_evidence(units, weights, mean, alpha)
    w = weights.weight_bg[weights.bin_n[:100]]
    mu = library[:100, None] * mean[0]
    np.testing.assert_allclose(found.counts_mg[0], (w * mu).sum(0))
    np.testing.assert_allclose(found.variance_mg[0], (w**2 * (mu + alpha * mu**2)).sum(0))
    result = compare(found, Contrast.of(units, 0, 1), Prior(mean[0], mean[1], np.zeros(2)), delta=0.0, by_sample=False)
    np.testing.assert_allclose(result.lfc_g, [1.0, 0.0], atol=1e-9)
    assert result.pval_g[1] > 0.99


def test_a_gene_without_molecules_and_a_single_cell_give_finite_numbers():
    units = Units.of(codes((0, 1), (1, 30)), zeros(31), zeros(31))
    x = np.zeros((31, 3), dtype=int)
    x[0, 1], x[5, 2] = 4, 30
    evidence = tally(x, np.full(31, 100.0), units, np.zeros(3))
    for by_sample in (True, False):
        found = compare(evidence, Contrast.of(units, 0, None), even(3), delta=0.1, by_sample=by_sample)
        assert np.isfinite([found.lfc_g, found.score_g, found.pval_g]).all()
        assert (found.pval_g <= 1).all()
        assert found.pval_g[[0, 2]].min() > 0.2


def test_high_counts_in_one_cell_are_not_significant():
    x = np.zeros((100, 2), dtype=int)
    x[7, 0] = 200
    units = Units.of(codes((0, 50), (1, 50)), zeros(100), zeros(100))
    found = compare(
        tally(x, np.full(100, 1000.0), units, np.full(2, 0.5)),
        Contrast.of(units, 0, 1),
        even(2),
        delta=0.0,
        by_sample=False,
    )
    assert found.pval_g[0] > 0.05


def test_the_prior_acts_as_an_additional_stratum():
    # the larger its weight, the closer the fold change is to the model's
    units = Units.of(codes((0, 10), (1, 10)), zeros(20), zeros(20))
    evidence = Evidence(units, np.array([[10.0], [10.0]]), np.full((2, 1), 10.0), np.array([[10.0], [10.0]]), ones(1))
    contrast = Contrast.of(units, 0, 1)
    lfc = compare(evidence, contrast, Prior(np.array([3.0]), ones(1), np.zeros(1)), delta=0.0, by_sample=False).lfc_g[0]
    assert lfc == pytest.approx(np.log2((5 + 5 * 0.75) / (5 + 5 * 0.25)))
    less = compare(
        replace(evidence, counts_mg=evidence.counts_mg * 100, variance_mg=evidence.variance_mg * 100),
        contrast,
        Prior(np.array([3.0]), ones(1), np.zeros(1)),
        delta=0.0,
        by_sample=False,
    ).lfc_g[0]
    assert 0 < less < lfc / 10
