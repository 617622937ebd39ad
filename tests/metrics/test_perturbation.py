"""Scores of predicted perturbations, against their definitions and other implementations."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse, stats
from scipy.spatial.distance import cdist
from sklearn.metrics import mean_squared_error, r2_score

import vxpress as vx


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def test_the_scale_is_that_of_scanpy_and_leaves_the_counts_alone(rng: np.random.Generator) -> None:
    x = rng.poisson(1.0, size=(20, 8)).astype(np.float32)
    x[3] = 0
    before, adata = x.copy(), AnnData(sparse.csr_matrix(x))
    with pytest.warns(UserWarning, match="zero counts"):
        sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    for given in (x, sparse.csr_matrix(x), sparse.csc_matrix(x)):
        np.testing.assert_allclose(vx.metrics.log1p_normalized(given).toarray(), adata.X.toarray(), rtol=1e-6)
    np.testing.assert_array_equal(x, before)
    twice = vx.metrics.log1p_normalized(x, 2 * x.sum(1)).toarray()
    np.testing.assert_allclose(np.expm1(twice).sum(1)[x.sum(1) > 0], 5e3)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_the_scale_refuses_what_cannot_be_counts(bad: float) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        vx.metrics.log1p_normalized(np.array([[1.0, bad]]))
    with pytest.raises(ValueError, match="library sizes"):
        vx.metrics.log1p_normalized(np.ones((2, 2)), np.array([1.0]))


def test_scores_of_a_change_agree_with_scipy_and_sklearn(rng: np.random.Generator) -> None:
    measured, weight = rng.normal(0.3, 1, size=60), rng.gamma(1, size=60)
    predicted = 0.6 * measured + rng.normal(size=60)
    plain, weighted = (vx.metrics.change_scores(predicted, measured, weights_g=w) for w in (None, weight))
    assert plain.pearson == pytest.approx(stats.pearsonr(predicted, measured)[0])
    assert plain.r2 == pytest.approx(r2_score(measured, predicted))
    assert plain.mse == pytest.approx(mean_squared_error(measured, predicted))
    assert plain.slope == pytest.approx(np.linalg.lstsq(measured[:, None], predicted, rcond=None)[0][0])
    assert plain.sign_agreement == pytest.approx((np.sign(predicted) == np.sign(measured)).mean())
    assert weighted.r2 == pytest.approx(r2_score(measured, predicted, sample_weight=weight))
    assert weighted.mse == pytest.approx(mean_squared_error(measured, predicted, sample_weight=weight))


def test_no_predicted_change_has_no_correlation_and_explains_nothing(rng: np.random.Generator) -> None:
    scores = vx.metrics.change_scores(np.zeros(30), rng.normal(size=30))
    assert np.isnan(scores.pearson)
    assert scores.r2 <= 0
    assert scores.slope == 0
    assert scores.sign_agreement == 0


@pytest.mark.parametrize("given", [np.zeros(3), np.array([1.0, np.nan]), np.zeros((2, 2))])
def test_changes_of_another_shape_or_not_finite_are_refused(given: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        vx.metrics.change_scores(given, np.ones(2))


def test_t_is_that_of_scipy_and_zero_for_constant_genes(rng: np.random.Generator) -> None:
    x, y = rng.poisson(1.0, size=(30, 6)).astype(float), rng.poisson([1, 1, 1, 1, 2, 3], size=(50, 6)).astype(float)
    expected = np.append(0.0, stats.ttest_ind(x, y, equal_var=False).statistic)
    x, y = np.insert(x, 0, 4.0, axis=1), np.insert(y, 0, 4.0, axis=1)
    np.testing.assert_allclose(vx.metrics.welch_t(x, y), expected, atol=1e-12)
    np.testing.assert_allclose(vx.metrics.welch_t(sparse.csr_matrix(x), sparse.csr_matrix(y)), expected, atol=1e-6)


def test_weights_favour_genes_that_respond_and_are_equal_without_response() -> None:
    weights = vx.metrics.de_weights(np.array([-4.0, 0.0, 2.0, np.nan]))
    np.testing.assert_allclose(weights, [0.8, 0.0, 0.2, 0.0])
    np.testing.assert_allclose(vx.metrics.de_weights(np.ones(4)), 0.25)


def test_overlap_counts_shared_genes_of_both_lists(rng: np.random.Generator) -> None:
    measured, predicted, error = rng.normal(size=200), rng.normal(size=200), rng.gamma(1, size=200)
    for scale in (None, error):
        size = np.ones(200) if scale is None else scale
        lists = [set(np.argsort(-np.abs(x / size))[:30]) for x in (measured, predicted)]
        found = vx.metrics.deg_overlap(predicted, measured, 30, error_g=scale)
        assert found == pytest.approx(len(lists[0] & lists[1]) / 30)
    assert vx.metrics.deg_overlap(measured, measured, 30) == 1.0
    assert vx.metrics.deg_overlap(np.zeros(200), measured, 30) == 0.0


def test_mmd_agrees_with_its_definition_and_is_unbiased(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(40, 3)), rng.normal(0.5, size=(30, 3))
    scale = np.median(cdist(x, x)[np.triu_indices(40, 1)])

    def k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.mean([np.exp(-(cdist(a, b) ** 2) / (2 * (h * scale) ** 2)) for h in (0.5, 1, 2)], 0)

    within = sum((k(z, z).sum() - len(z)) / (len(z) * (len(z) - 1)) for z in (x, y))
    assert vx.metrics.mmd(x, y) == pytest.approx(within - 2 * k(x, y).mean())
    same = [vx.metrics.mmd(rng.normal(size=(30, 2)), rng.normal(size=(30, 2))) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)


def test_rank_is_one_for_the_truth_and_chance_for_one_prediction_for_all(rng: np.random.Generator) -> None:
    measured = rng.normal(size=(9, 40))
    assert (vx.metrics.rank_discrimination(measured + 0.01, measured) == 1).all()
    everywhere = np.repeat(measured.mean(0)[None], 9, 0)
    for metric in ("l1", "l2", "cosine"):
        assert vx.metrics.rank_discrimination(everywhere, measured, metric=metric).mean() == pytest.approx(5 / 9)
    assert vx.metrics.rank_discrimination(np.zeros((9, 4)), np.ones((9, 4))) == pytest.approx(5 / 9)


def test_rank_leaves_out_genes_of_a_perturbation() -> None:
    measured = np.array([[9.0, 0.0, 1.0], [0.0, 9.0, 0.0]])
    predicted = np.array([[9.0, 0.0, 0.0], [0.0, 9.0, 1.0]])
    left_out = np.array([[True, True, False], [True, True, False]])
    np.testing.assert_array_equal(vx.metrics.rank_discrimination(predicted, measured), [1, 1])
    np.testing.assert_array_equal(vx.metrics.rank_discrimination(predicted, measured, left_out_pg=left_out), [0.5, 0.5])
