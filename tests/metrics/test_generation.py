"""Metrics of two samples of cells, distinguishable or not."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse, stats
from scipy.spatial.distance import cdist
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestNeighbors

import vxpress as vx
from vxpress.metrics._generation import _perplexity_weights


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_auroc_of_one_distribution_is_a_half_and_rises_with_the_difference(rng: np.random.Generator) -> None:
    x = rng.normal(size=(600, 4))
    near, same = x[:300] + np.array([0.7, 0, 0, 0]), x[:300]
    scores = [vx.metrics.two_sample_auroc(x[300:], y, n_trees=50) for y in (same, near)]
    assert abs(scores[0] - 0.5) < 0.07
    # a shift of .7 sd: the best possible area follows from the normal distribution
    best = stats.norm.cdf(0.7 / np.sqrt(2))
    assert 0.58 < scores[1] < best + 0.05


def test_auroc_agrees_with_pooled_cross_validation_of_sklearn(rng: np.random.Generator) -> None:
    x, y = rng.poisson(3.0, size=(200, 5)), rng.poisson([3.0, 3.0, 3.0, 4.0, 5.0], size=(200, 5))
    both, of_y = np.concatenate([x, y]), np.repeat([0, 1], 200)
    votes = cross_val_predict(RandomForestClassifier(100, random_state=1), both, of_y, cv=5, method="predict_proba")[
        :, 1
    ]
    expected = roc_auc_score(of_y, votes)
    assert abs(vx.metrics.two_sample_auroc(x, y, n_trees=100) - expected) < 0.03
    sparse_score = vx.metrics.two_sample_auroc(sparse.csr_matrix(x), sparse.csr_matrix(y), n_trees=20)
    assert sparse_score == vx.metrics.two_sample_auroc(x, y, n_trees=20)


def test_lisi_of_mixed_samples_is_the_maximum_of_a_finite_neighbourhood(rng: np.random.Generator) -> None:
    x = rng.normal(size=(3000, 3))
    mixed = vx.metrics.mixing_lisi(x[:1500], x[1500:])
    weight_nk = _perplexity_weights(NearestNeighbors(n_neighbors=91).fit(x).kneighbors(x)[0][:, 1:], 30.0)
    # the sample of a neighbour is a fair coin: E[p^2 + (1 - p)^2] = (1 + sum w^2) / 2
    assert mixed == pytest.approx((2 / (1 + (weight_nk**2).sum(1))).mean(), abs=0.02)
    assert vx.metrics.mixing_lisi(x[:1500], x[1500:] + 50) == 1.0
    assert 1.2 < vx.metrics.mixing_lisi(x[:1500], x[1500:] + np.array([1.5, 0, 0])) < 1.85


def test_lisi_weights_have_the_requested_perplexity(rng: np.random.Generator) -> None:
    distance_nk = np.sort(rng.gamma(2.0, size=(50, 90)) * rng.uniform(0.01, 100, size=(50, 1)), axis=1)
    weight_nk = _perplexity_weights(distance_nk, 30.0)
    np.testing.assert_allclose(weight_nk.sum(1), 1.0)
    np.testing.assert_allclose(np.exp(stats.entropy(weight_nk, axis=1)), 30.0, rtol=1e-3)
    assert (np.diff(weight_nk, axis=1) <= 0).all()


def test_lisi_of_identical_cells_is_finite() -> None:
    assert 1.0 <= vx.metrics.mixing_lisi(np.zeros((60, 2)), np.zeros((60, 2))) <= 2.0


def test_energy_distance_agrees_with_its_definition_and_with_scipy_in_one_dimension(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(80, 3)), rng.normal(0.5, size=(60, 3))
    within = sum(cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    assert vx.metrics.energy_distance(x, y) == pytest.approx(2 * cdist(x, y).mean() - within)
    a, b = rng.normal(size=4000), rng.normal(1.0, 2.0, size=4000)
    # scipy returns the square root, including the distance of a point to itself
    assert vx.metrics.energy_distance(a[:, None], b[:, None]) == pytest.approx(
        stats.energy_distance(a, b) ** 2, abs=5e-3
    )


def test_energy_distance_detects_shape_if_means_are_equal(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(1000, 2)), rng.normal(scale=2.0, size=(1000, 2))
    assert vx.metrics.energy_distance(x, y - y.mean(0) + x.mean(0)) > 0.1
    assert abs(vx.metrics.energy_distance(x[:500], x[500:])) < 0.02


def test_memorization_counts_copies_and_bounds_as_clopper_and_pearson(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2400, 5))
    train, held_out, fresh = x[:800], x[800:1600], x[1600:]
    found = vx.metrics.memorization(fresh, train, held_out)
    assert abs(found.share - 0.05) < 0.03
    near = round(found.share * 800)
    # P(at most `near` of 800) at the bound is 1 - confidence
    assert stats.binom.cdf(near, 800, found.upper) == pytest.approx(0.05, abs=1e-6)
    half = vx.metrics.memorization(np.concatenate([train[:400] + 1e-6, fresh[:400]]), train, held_out)
    assert half.share == pytest.approx(0.5 + 0.5 * (fresh_share(train, held_out, fresh[:400])), abs=1e-9)
    assert vx.metrics.memorization(train, train, held_out).upper == 1.0


def fresh_share(train: np.ndarray, held_out: np.ndarray, generated: np.ndarray) -> float:
    limit = np.quantile(cdist(held_out, train).min(1), 0.05)
    return float((cdist(generated, train).min(1) < limit).mean())


def test_fold_change_slope_recovers_a_known_attenuation(rng: np.random.Generator) -> None:
    base, change = rng.gamma(2.0, 10.0, size=60), rng.normal(0, 2.0, size=60)
    groups = np.repeat(["a", "b"], 400)

    def drawn(strength: float) -> np.ndarray:
        mean = np.where((groups == "a")[:, None], base * np.exp2(strength * change), base)
        return rng.poisson(mean).astype(float)

    real, other = drawn(1.0), drawn(1.0)
    for strength in (1.0, 0.5):
        found = vx.metrics.fold_change_slope(
            real, groups, drawn(strength), groups, select_ng=other, select_groups=groups
        )
        assert found.slope == pytest.approx(strength, abs=0.03)
        assert 40 < found.n_genes <= 120
    as_sparse = [sparse.csr_matrix(x) for x in (real, other)]
    assert vx.metrics.fold_change_slope(as_sparse[0], groups, as_sparse[1], groups).slope == pytest.approx(
        vx.metrics.fold_change_slope(real, groups, other, groups).slope
    )


def test_fold_change_slope_chooses_as_welch_and_benjamini_hochberg(rng: np.random.Generator) -> None:
    groups = np.repeat(["a", "b"], 50)
    x = rng.poisson(np.where((groups == "a")[:, None], [10, 10, 10, 0, 3], [10, 30, 11, 0, 9])).astype(float)
    p = stats.ttest_ind(np.log1p(x[:50]), np.log1p(x[50:]), equal_var=False).pvalue
    q = stats.false_discovery_control(np.nan_to_num(p, nan=1.0))
    lfc = np.log2((x[:50].mean(0) + 0.1) / (x[50:].mean(0) + 0.1))
    n = int(((q <= 0.05) & (np.abs(lfc) >= 1.0)).sum())
    slope, n_genes = vx.metrics.fold_change_slope(x, groups, x, groups)
    assert slope == pytest.approx(1.0)
    assert n_genes == 2 * n


def test_without_differing_genes_the_slope_is_nan(rng: np.random.Generator) -> None:
    x = rng.poisson(5.0, size=(40, 6))
    slope, n_genes = vx.metrics.fold_change_slope(x, ["a"] * 20 + ["b"] * 20, x, ["a"] * 20 + ["b"] * 20)
    assert np.isnan(slope)
    assert n_genes == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: vx.metrics.two_sample_auroc(x, x[:, :2]), "same columns"),
        (lambda x: vx.metrics.two_sample_auroc(x, x[:3]), "at least 5"),
        (lambda x: vx.metrics.energy_distance(x, x[:0]), "no cell"),
        (lambda x: vx.metrics.energy_distance(x * np.nan, x), "finite"),
        (lambda x: vx.metrics.mixing_lisi(x, x), "three times the perplexity"),
        (lambda x: vx.metrics.memorization(x, x[:0], x), "no cell"),
        (lambda x: vx.metrics.fold_change_slope(x, ["a"], x, ["a"]), "one name per cell"),
        (lambda x: vx.metrics.fold_change_slope(x, x, x, x), "real_groups= .* found ndarray"),
    ],
)
def test_samples_that_do_not_match_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.ones((10, 3)))  # type: ignore[operator]


def test_an_anndata_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(TypeError, match="Pass its counts"):
        vx.metrics.two_sample_auroc(ad.AnnData(np.ones((4, 2))), np.ones((4, 2)))
