"""Nearest cells under uncertainty, compared with direct sums and with Bayes' rule on a grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from vxpress.core.inference import nearest as module
from vxpress.core.inference.nearest import edge_frequency, likelihood_of, nearest

Cells = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def cells() -> Callable[[int, int], Cells]:
    def draw(n: int, d: int) -> Cells:
        rng = np.random.default_rng(0)
        return rng.normal(0, 1, (n, d)).astype(np.float32), rng.uniform(0.02, 0.6, (n, d)).astype(np.float32)

    return draw


def all_pairs(peak_nd: np.ndarray, precision_nd: np.ndarray, mean_nd: np.ndarray, var_nd: np.ndarray) -> np.ndarray:
    difference = mean_nd[None].astype(float) - peak_nd[:, None]
    squared_nn = (precision_nd[:, None] * (difference**2 + var_nd[None])).sum(-1)
    np.fill_diagonal(squared_nn, np.inf)
    return squared_nn


def test_likelihood_times_population_is_the_posterior(cells):
    mean_nd, var_nd = (part.astype(float) for part in cells(40, 1))
    peak_nd, precision_nd = likelihood_of(mean_nd, var_nd)
    population = norm(mean_nd.mean(), np.sqrt(mean_nd.var() + var_nd.mean()))
    z = np.linspace(-12, 12, 40_001)
    for m, v, peak, precision in zip(mean_nd, var_nd, peak_nd, precision_nd, strict=True):
        product = norm.pdf(z, peak, precision**-0.5) * population.pdf(z)
        np.testing.assert_allclose(product / product.sum() / (z[1] - z[0]), norm.pdf(z, m, np.sqrt(v)), atol=1e-6)


def test_a_distance_is_the_expected_loss_of_log_likelihood(cells):
    mean_nd, var_nd = cells(12, 2)
    peak_nd, precision_nd = likelihood_of(mean_nd, var_nd)
    index_nk, squared_nk = nearest(peak_nd, precision_nd, mean_nd, var_nd, 11, 0)
    z_snd = mean_nd + np.sqrt(var_nd) * np.random.default_rng(1).standard_normal((200_000, *mean_nd.shape))
    i, j = 0, index_nk[0, 3]
    lost_s = 0.5 * (precision_nd[i] * (z_snd[:, j] - peak_nd[i]) ** 2).sum(-1)
    assert squared_nk[0, 3] == pytest.approx(2 * lost_s.mean(), rel=0.01)


@pytest.mark.parametrize(("n", "d", "k"), [(300, 10, 14), (50, 1, 3), (20, 3, 19), (4, 2, 1)])
def test_nearest_cells_equal_those_from_all_pairs(cells, n, d, k):
    mean_nd, var_nd = cells(n, d)
    peak_nd, precision_nd = likelihood_of(mean_nd, var_nd)
    squared_nn = all_pairs(peak_nd, precision_nd, mean_nd, var_nd)
    index_nk, squared_nk = nearest(peak_nd, precision_nd, mean_nd, var_nd, k, 0)
    np.testing.assert_array_equal(index_nk, np.argsort(squared_nn, axis=1)[:, :k])
    np.testing.assert_allclose(squared_nk, np.sort(squared_nn, axis=1)[:, :k], rtol=1e-10)


def test_nearest_cells_far_from_the_origin_and_in_small_blocks(cells, monkeypatch):
    mean_nd, var_nd = cells(200, 4)
    expected, _ = nearest(*likelihood_of(mean_nd, var_nd), mean_nd, var_nd, 5, 0)
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 200 * 7)
    shifted_nd = mean_nd.astype(float) + 1000.0
    found, _ = nearest(*likelihood_of(shifted_nd, var_nd), shifted_nd, var_nd, 5, 0)
    np.testing.assert_array_equal(found, expected)


def test_the_approximate_search_finds_nearly_all(cells, monkeypatch):
    mean_nd, var_nd = cells(3000, 5)
    arguments = (*likelihood_of(mean_nd, var_nd), mean_nd, var_nd, 10, 0)
    exact, _ = nearest(*arguments)
    monkeypatch.setattr(module, "EXACT_CELLS", 100)
    monkeypatch.setattr(module, "PROBES", 16)  # of 54 clusters
    found, squared_nk = nearest(*arguments)
    again, _ = nearest(*arguments)
    np.testing.assert_array_equal(found, again)
    assert not (found == np.arange(3000)[:, None]).any()
    assert np.isfinite(squared_nk).all()
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, exact, strict=True)]) > 0.9


def test_few_cells_in_many_clusters_still_have_all_their_neighbours(cells, monkeypatch):
    mean_nd, var_nd = cells(60, 3)
    arguments = (*likelihood_of(mean_nd, var_nd), mean_nd, var_nd, 40, 0)
    exact, _ = nearest(*arguments)
    monkeypatch.setattr(module, "EXACT_CELLS", 10)
    monkeypatch.setattr(module, "PROBES", 1)
    found, squared_nk = nearest(*arguments)
    assert np.isfinite(squared_nk).all()
    assert all(len(np.unique(row)) == 40 for row in found)
    assert np.mean(found == exact) > 0.2


def test_collapsed_dimensions_and_identical_cells_are_supported():
    mean_nd = np.zeros((30, 3), dtype=np.float32)
    var_nd = np.ones((30, 3), dtype=np.float32)
    index_nk, squared_nk = nearest(*likelihood_of(mean_nd, var_nd), mean_nd, var_nd, 5, 0)
    assert np.isfinite(squared_nk).all()
    assert not (index_nk == np.arange(30)[:, None]).any()


def test_edge_frequencies_are_shares_of_draws(cells):
    mean_nd, var_nd = cells(80, 3)
    _, precision_nd = likelihood_of(mean_nd, var_nd)
    draw: Any = lambda seed: edge_frequency(mean_nd, var_nd, precision_nd, 6, 8, np.random.default_rng(seed))
    frequency = draw(0)
    np.testing.assert_allclose(np.asarray(frequency.sum(1)).ravel(), 6, rtol=1e-5)
    assert frequency.data.min() > 0
    assert frequency.data.max() <= 1
    np.testing.assert_allclose(frequency.data * 8, np.rint(frequency.data * 8))
    assert not frequency.diagonal().any()
    assert (draw(0) != frequency).nnz == 0
    assert (draw(1) != frequency).nnz > 0


def test_without_variance_every_draw_gives_the_same_edges(cells):
    mean_nd, _ = cells(60, 3)
    frequency = edge_frequency(mean_nd, np.zeros_like(mean_nd), np.ones_like(mean_nd), 4, 5, np.random.default_rng(0))
    np.testing.assert_allclose(frequency.data, 1.0)
    assert frequency.nnz == 60 * 4


def test_frequencies_of_three_cells_are_probabilities():
    # cells at 0 (known exactly) and at N(1, 1), N(1.5, 1): which of the two is nearer to 0?
    mean_nd, var_nd = np.array([[0.0], [1.0], [1.5]]), np.array([[0.0], [1.0], [1.0]])
    frequency = edge_frequency(mean_nd, var_nd, np.ones((3, 1)), 1, 1000, np.random.default_rng(0)).toarray()
    z = np.random.default_rng(1).normal([1.0, 1.5], 1.0, (400_000, 2))
    assert frequency[0, 1] == pytest.approx(np.mean(np.abs(z[:, 0]) < np.abs(z[:, 1])), abs=0.06)
