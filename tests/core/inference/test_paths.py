"""The density along paths in the latent space."""

from __future__ import annotations

import numpy as np
import pytest

from vxpress.core.inference.paths import CellDensity, percentile_among
from vxpress.core.maps.paths import linear_path
from vxpress.metrics import log_aggregate_posterior

POSITION = np.linspace(0, 1, 9)


def _cells_with_gap(gap: float, d: int = 8, n: int = 600) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Simulate two round clusters at a distance of ``gap`` standard deviations."""
    rng = np.random.default_rng(1)
    mean_nd = rng.normal(size=(n, d)) * 0.9
    mean_nd[n // 2 :, 0] += gap
    return mean_nd, np.full((n, d), 0.19), [np.arange(n // 2), np.arange(n // 2, n)]


def test_own_density_uses_only_the_other_cells() -> None:
    mean_nd, var_nd, ends = _cells_with_gap(3.0, n=40)
    cells = CellDensity.choose(mean_nd, var_nd, ends, np.random.default_rng(0))
    rows = np.array([3, 25])
    found = cells.own_density(mean_nd[rows] + 0.1, rows)
    for i, row in enumerate(rows):
        others = np.delete(np.arange(40), row)
        expected = log_aggregate_posterior(mean_nd[[row]] + 0.1, mean_nd[others], var_nd[others])
        assert found[i] == pytest.approx(expected[0])


def test_density_is_low_between_two_clusters_but_not_on_a_bridge() -> None:
    for gap, empty in ((10.0, True), (2.0, False)):
        mean_nd, var_nd, ends = _cells_with_gap(gap)
        cells = CellDensity.choose(mean_nd, var_nd, ends, np.random.default_rng(0))
        path = linear_path(mean_nd[ends[0]].mean(0), mean_nd[ends[1]].mean(0), POSITION)
        share = cells.percentiles(path, POSITION)
        # at the ends the moved cells are the cells themselves
        np.testing.assert_allclose(share[[0, -1]], 50.0, atol=8.0)
        assert (share[3:6] < 5.0).all() == empty
        if not empty:
            assert share.min() > 20.0


def test_the_middle_of_a_population_alone_would_hide_the_gap() -> None:
    # the reason for moving cells: density on the mean path between separate clusters is higher than around a typical
    # cell
    mean_nd, var_nd, ends = _cells_with_gap(6.0, d=20)
    cells = CellDensity.choose(mean_nd, var_nd, ends, np.random.default_rng(0))
    middle = linear_path(mean_nd[ends[0]].mean(0), mean_nd[ends[1]].mean(0), POSITION)
    log_middle = log_aggregate_posterior(middle[4:5], mean_nd, var_nd)
    assert percentile_among(log_middle, cells.reference())[0] > 80.0
    assert cells.percentiles(middle, POSITION)[4] < 30.0


def test_large_data_are_subsampled_with_the_cells_of_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vxpress.core.inference.paths.MAX_CELLS", 100)
    mean_nd, var_nd, ends = _cells_with_gap(3.0)
    cells = CellDensity.choose(mean_nd, var_nd, [np.array([7]), ends[1]], np.random.default_rng(0))
    assert 100 <= len(cells.mean_nd) <= 301
    np.testing.assert_array_equal(cells.mean_nd[cells.probes[0]], mean_nd[[7]])
    assert np.isfinite(cells.percentiles(mean_nd[[7, 400]], np.array([0.0, 1.0]))).all()


def test_percentile_counts_values_below() -> None:
    np.testing.assert_allclose(
        percentile_among(np.array([0.0, 2.5, 9.0]), np.array([3.0, 1.0, 2.0, 4.0])), [0, 50, 100]
    )
