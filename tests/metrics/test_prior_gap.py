"""The prior gap, compared with closed forms."""

from __future__ import annotations

import numpy as np
import pytest

import vxpress as vx

RNG = np.random.default_rng(0)
HELD = np.arange(3000) % 5 == 0


@pytest.mark.parametrize(("center", "scale"), [(0.0, 1.0), (1.5, 1.0), (0.0, 2.0), (0.5, 0.6)])
def test_gap_of_a_normal_aggregate(center: float, scale: float) -> None:
    sd = 0.3
    mean_nd = RNG.normal(center, np.sqrt(scale**2 - sd**2), (3000, 2))
    gap, low = vx.metrics.prior_gap(mean_nd, np.full((3000, 2), sd**2), HELD)
    exact = 2 * 0.5 * (center**2 + scale**2 - 1.0 - 2 * np.log(scale))
    # three standard errors, and the loss of a mixture fitted to this number of cells
    assert abs(gap - exact) < 1.5 * (gap - low) + 0.05
    assert low < gap


def test_gap_of_a_mixture_is_found_by_a_mixture() -> None:
    mean_nd = 3.0 * RNG.integers(0, 2, (3000, 1)) + RNG.normal(0, 0.3, (3000, 1))
    gap, _ = vx.metrics.prior_gap(mean_nd, np.full((3000, 1), 0.16), HELD)
    grid = np.linspace(-8, 12, 40_001)
    q = np.mean([np.exp(-0.5 * (grid - c) ** 2 / 0.25) / np.sqrt(2 * np.pi * 0.25) for c in (0.0, 3.0)], axis=0)
    p = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(gap, np.trapezoid(q * np.log(q / p), grid), rtol=0.06)


def test_a_prior_can_be_given() -> None:
    mean_nd = RNG.normal(2.0, 0.5, (3000, 3))
    gap, low = vx.metrics.prior_gap(
        mean_nd,
        np.full((3000, 3), 0.25),
        HELD,
        log_prior=lambda z: -0.5 * ((z - 2.0) ** 2 / 0.5 + np.log(2 * np.pi * 0.5)).sum(1),
    )
    assert low < 0.03
    assert abs(gap) < 0.1


def test_without_held_out_cells_and_with_many_dimensions() -> None:
    mean_nd = RNG.normal(0, np.sqrt(0.75), (500, 60))
    gap, low = vx.metrics.prior_gap(mean_nd, np.full((500, 60), 0.25))
    assert low < 0.0 < 60 * 0.05 + gap
    again = vx.metrics.prior_gap(mean_nd, np.full((500, 60), 0.25))
    assert again == (gap, low)


def test_few_cells_give_no_lower_bound_above_zero() -> None:
    one, three = (vx.metrics.prior_gap(np.full((n, 1), 5.0), np.ones((n, 1))) for n in (1, 3))
    assert np.isnan(one).all()
    assert not three[1] > 0
