"""P-values from ranks among held-out cells, and the regression before."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest, spearmanr

from vxpress.core.inference.anomaly import PARTS, combined
from vxpress.core.inference.conformal import DepthAndBatch, Regression, Score, cross_fitted, p_values, strata


def _depth_and_batch(n: int, rng: np.random.Generator, n_batches: int = 1) -> DepthAndBatch:
    return DepthAndBatch(rng.normal(7.0, 0.6, n), rng.integers(0, n_batches, n))


def _parts(at: DepthAndBatch, rng: np.random.Generator) -> np.ndarray:
    """Draw skewed, correlated quantities whose location and scale depend on depth and batch."""
    n = len(at.log_depth_n)
    noise = rng.gamma(2.0, size=(n, len(PARTS))) + rng.gamma(2.0, size=(n, 1)) - 4.0
    location = 3.0 * at.log_depth_n - 0.3 * at.log_depth_n**2 + 2.0 * at.batch_n
    scale = np.exp(0.5 * (at.log_depth_n - 7.0) + 0.4 * at.batch_n)
    return location[:, None] + scale[:, None] * noise


def test_p_values_count_scores_that_are_at_least_as_high():
    calibration = np.array([1.0, 2.0, 2.0, 3.0])
    zeros = np.zeros(4, dtype=int)
    score = np.array([0.0, 2.0, 2.5, 9.0])
    found = p_values(score, zeros, calibration, zeros, smallest=200)
    np.testing.assert_allclose(found, [1.0, 4 / 5, 2 / 5, 1 / 5])
    plain = [(1 + sum(c >= s for c in calibration)) / 5 for s in score]
    np.testing.assert_allclose(found, plain)


def test_p_values_with_random_ties_are_between_the_bounds():
    calibration, zeros = np.array([1.0, 2.0, 2.0, 3.0]), np.zeros(4, dtype=int)
    many = np.full(4000, 2.0)
    found = p_values(many, np.zeros(4000, int), calibration, zeros, smallest=200, rng=np.random.default_rng(0))
    assert found.min() > 1 / 5
    assert found.max() <= 4 / 5
    assert kstest(found, "uniform", args=(1 / 5, 3 / 5)).pvalue > 1e-3


def test_exchangeable_scores_give_uniform_p_values():
    """Over many calibrations, rank p-values are uniform on 1 / (n + 1) ... 1 for any distribution of the scores."""
    rng = np.random.default_rng(0)
    one = np.zeros(1, dtype=int)
    found = np.array(
        [p_values(rng.pareto(1.0, 1), one, rng.pareto(1.0, 9), np.zeros(9, int), smallest=5)[0] for _ in range(4000)]
    )
    values, counts = np.unique(np.rint(found * 10).astype(int), return_counts=True)
    assert values.tolist() == list(range(1, 11))
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # chi-square with 9 degrees of freedom, 0.1 %


def test_batches_with_enough_cells_are_ranked_within_the_batch():
    batch = np.repeat([0, 1, 2], [300, 200, 199])
    assert strata(batch, 200).tolist() == [0, 1]
    calibration = np.concatenate([np.linspace(0, 1, 300), np.linspace(10, 11, 200), np.linspace(20, 21, 199)])
    found = p_values(np.array([5.0, 5.0, 5.0]), np.array([0, 1, 2]), calibration, batch, smallest=200)
    np.testing.assert_allclose(found, [1 / 301, 1.0, (1 + 399) / 700])
    unseen = p_values(np.array([5.0]), np.array([7]), calibration, batch, smallest=200)
    np.testing.assert_allclose(unseen, 400 / 700)


def test_regression_removes_depth_and_batch_from_location_and_scale():
    rng = np.random.default_rng(1)
    seen, new = _depth_and_batch(4000, rng, 3), _depth_and_batch(4000, rng, 3)
    model = Regression.fit(_parts(seen, rng), seen)
    units = model.apply(_parts(new, rng), new)
    assert abs(spearmanr(units[:, 0], new.log_depth_n).statistic) < 0.1
    for code in range(3):
        np.testing.assert_allclose(units[new.batch_n == code].mean(0), 0.0, atol=0.15)
        np.testing.assert_allclose(units[new.batch_n == code].std(0), 1.0, atol=0.25)
    deep = new.log_depth_n > np.median(new.log_depth_n)
    np.testing.assert_allclose(units[deep].std(0), units[~deep].std(0), atol=0.25)


def test_regression_recovers_what_it_can_express():
    rng = np.random.default_rng(2)
    at = _depth_and_batch(5000, rng)
    values = (2.0 - 3.0 * at.log_depth_n + rng.normal(size=5000))[:, None]
    model = Regression.fit(values, at)
    at_new = DepthAndBatch(np.linspace(6.0, 8.0, 9), np.zeros(9, int))
    line = (2.0 - 3.0 * at_new.log_depth_n)[:, None]
    np.testing.assert_allclose(model.apply(line, at_new), 0.0, atol=0.12)
    np.testing.assert_allclose(model.apply(line + 1.0, at_new), 1.0, atol=0.2)


def test_unseen_depths_use_the_nearest_depth_and_unseen_batches_the_mean():
    rng = np.random.default_rng(3)
    at = _depth_and_batch(600, rng, 2)
    model = Regression.fit(_parts(at, rng), at)
    value = np.ones((1, len(PARTS)))
    deepest, beyond = (DepthAndBatch(np.array([d]), np.array([0])) for d in (at.log_depth_n.max(), 50.0))
    np.testing.assert_allclose(model.apply(value, deepest), model.apply(value, beyond))
    unseen = model.apply(value, DepthAndBatch(np.array([7.0]), np.array([9])))
    assert np.isfinite(unseen).all()


def test_one_depth_and_constant_parts_give_finite_scores():
    at = DepthAndBatch(np.full(60, 7.0), np.zeros(60, int))
    values = np.tile(np.arange(60.0)[:, None], (1, len(PARTS)))
    values[:, 2] = 5.0
    assert np.isfinite(Score.fit(values, at).apply(values, at)).all()


def test_p_values_are_calibrated_in_every_batch_and_depth():
    """Scores of calibration cells are cross-fitted, so they are comparable with those of new cells."""
    ranks, rng = [], np.random.default_rng(4)
    for _ in range(15):
        seen, new = _depth_and_batch(400, rng, 3), _depth_and_batch(200, rng, 3)
        parts = _parts(seen, rng)
        calibration = cross_fitted(parts, seen, rng)
        score = Score.fit(parts, seen).apply(_parts(new, rng), new)
        p = p_values(score, new.batch_n, calibration, seen.batch_n, smallest=200, rng=rng)
        ranks.append(np.stack([p, new.batch_n, new.log_depth_n], axis=1))
    p, batch, depth = np.concatenate(ranks).T
    # 200 cells share one calibration, so the distance is that of about a hundred independent cells
    bound = 1.36 * np.sqrt(1 / (15 * 400) + 1 / len(p))
    assert kstest(p, "uniform").statistic < bound
    for part in [batch == 0, batch == 1, batch == 2, depth < 6.7, depth > 7.3]:
        assert kstest(p[part], "uniform").statistic < 1.63 * np.sqrt(1 / (15 * 400 * part.mean()) + 1 / part.sum())


def test_cross_fitting_leaves_each_cell_out():
    rng = np.random.default_rng(5)
    at = _depth_and_batch(300, rng)
    parts = _parts(at, rng)
    spoiled = parts.copy()
    spoiled[7] += 1e3
    before, after = (cross_fitted(values, at, np.random.default_rng(0))[7] for values in (parts, spoiled))
    alone = Score.fit(np.delete(parts, 7, 0), at[np.delete(np.arange(300), 7)]).apply(spoiled[[7]], at[np.array([7])])[
        0
    ]
    assert after > before
    assert after == pytest.approx(alone, rel=0.3)


def test_low_surprise_does_not_compensate_for_distance():
    units = np.array([[1.5, -5.0, -5.0, -5.0], [1.5, 0.0, 0.0, 0.0], [1.5, 1.0, -2.0, 2.0], [9.0, 9.0, 9.0, 9.0]])
    np.testing.assert_allclose(combined(units), [1.5, 1.5, 4.5, 15.0], atol=0.03)
    assert combined(np.array([[9.0, 0, 0, 0]])) > combined(np.array([[8.0, 0, 0, 0]]))
