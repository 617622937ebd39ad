from __future__ import annotations

import numpy as np
import pytest

from vxpress.core.inference import support
from vxpress.core.inference.support import closeness, local_support, neighborhood_size


def _plain(mean_nd: np.ndarray, weight_n: np.ndarray, k: int) -> np.ndarray:
    """Compute support from all distances between cells."""
    out = np.empty(len(mean_nd))
    for i, at in enumerate(mean_nd):
        distance = np.square(mean_nd - at).sum(1)
        distance[i] = np.inf
        out[i] = weight_n[np.argsort(distance)[:k]].mean()
    return out / weight_n.mean()


def test_support_is_the_share_among_neighbours_over_that_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "CHUNK", 70)
    rng = np.random.default_rng(0)
    mean_nd, weight_n = rng.normal(size=(200, 3)), (rng.random(200) < 0.3).astype(float)
    np.testing.assert_allclose(local_support(mean_nd, weight_n, 12), _plain(mean_nd, weight_n, 12))


def test_support_is_one_on_average_for_an_evenly_spread_condition() -> None:
    rng = np.random.default_rng(1)
    mean_nd, weight_n = rng.normal(size=(3000, 2)), (rng.random(3000) < 0.4).astype(float)
    found = local_support(mean_nd, weight_n, 50)
    assert abs(found.mean() - 1) < 0.05
    assert (found > 0.4).all()


def test_a_cluster_without_the_condition_has_no_support() -> None:
    rng = np.random.default_rng(2)
    mean_nd = rng.normal(size=(400, 2)) + 20 * (np.arange(400) < 100)[:, None]
    weight_n = ((np.arange(400) >= 100) & (rng.random(400) < 0.5)).astype(float)
    found = local_support(mean_nd, weight_n, 30)
    np.testing.assert_array_equal(found[:100], 0)
    assert (found[100:] > 0.5).all()


def test_identical_cells_do_not_count_themselves() -> None:
    weight_n = np.zeros(20)
    weight_n[3] = 1
    found = local_support(np.zeros((20, 2)), weight_n, 19)
    # none of its 19 neighbours is of the condition
    assert found[3] == pytest.approx(0)
    np.testing.assert_allclose(np.delete(found, 3), 20 / 19)


def test_support_with_no_cell_and_with_one_cell_of_the_condition() -> None:
    np.testing.assert_array_equal(local_support(np.random.default_rng(0).normal(size=(9, 2)), np.zeros(9), 3), 0)
    np.testing.assert_array_equal(local_support(np.zeros((1, 2)), np.ones(1), 30), 1)


@pytest.mark.parametrize(
    ("n", "share", "expected"),
    [(10_000, 0.5, 30), (10_000, 0.1, 50), (10_000, 0.001, 500), (100, 0.01, 30), (20, 0.5, 19)],
)
def test_the_neighbourhood_grows_for_rare_conditions(n: int, share: float, expected: int) -> None:
    weight_n = np.zeros(n)
    weight_n[: round(share * n)] = 1
    assert neighborhood_size(weight_n) == expected


def test_closeness_is_one_at_the_value_and_handles_constants() -> None:
    values = np.random.default_rng(0).normal(50, 10, 500)
    found = closeness(values, float(values[7]))
    assert found[7] == 1
    assert (np.argsort(-found)[:5] == np.argsort(np.abs(values - values[7]))[:5]).all()
    assert closeness(values, 1000.0).sum() < 1e-6
    np.testing.assert_array_equal(closeness(np.full(4, 2.0), 2.0), 1)
    np.testing.assert_array_equal(closeness(np.full(4, 2.0), 3.0), 0)
    # more than half of the values are equal, so the bandwidth is from the standard deviation
    assert 0 < closeness(np.r_[np.zeros(90), np.ones(10)], 0.05)[0] < 1
