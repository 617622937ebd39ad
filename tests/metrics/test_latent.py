"""Metrics of a latent space, compared with closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import vxpress as vx

RNG = np.random.default_rng(0)


def test_kl_is_the_integral() -> None:
    mean, var = np.array([[0.7, -2.0]]), np.array([[0.3, 1.9]])
    grid = np.linspace(-15, 15, 200_001)
    for d, kl in enumerate(vx.metrics.kl_per_dimension(mean, var)):
        q = stats.norm(mean[0, d], np.sqrt(var[0, d]))
        integrand = q.pdf(grid) * (q.logpdf(grid) - stats.norm.logpdf(grid))
        np.testing.assert_allclose(kl, np.trapezoid(integrand, grid), rtol=1e-6)


def test_active_units_follow_the_variance_of_the_mean() -> None:
    mean = np.column_stack([RNG.normal(0, 0.2, 5000), RNG.normal(0, 0.05, 5000), np.full(5000, 3.0)])
    assert vx.metrics.active_units(mean).tolist() == [True, False, False]
    assert vx.metrics.active_units(mean, threshold=1e-3).tolist() == [True, True, False]


def test_aggregate_posterior_is_a_mixture() -> None:
    mean, var = RNG.normal(size=(7, 2)), RNG.uniform(0.2, 2, (7, 2))
    z = RNG.normal(size=(1100, 2))
    density = np.mean([stats.multivariate_normal(m, np.diag(v)).pdf(z) for m, v in zip(mean, var, strict=True)], axis=0)
    np.testing.assert_allclose(vx.metrics.log_aggregate_posterior(z, mean, var), np.log(density), rtol=1e-8)


@pytest.mark.parametrize("sd", [0.5, 0.8])
def test_information_of_a_gaussian_channel(sd: float) -> None:
    mean = RNG.normal(0, np.sqrt(1 - sd**2), (4000, 1))
    found = vx.metrics.mutual_information(mean, np.full((4000, 1), sd**2))
    # z ~ N(0, 1) and z | x ~ N(mean, sd^2): the capacity of the channel
    np.testing.assert_allclose(found, -np.log(sd), atol=0.04)


def test_information_is_capped_by_the_number_of_cells() -> None:
    mean = 20.0 * np.arange(50)[:, None]
    np.testing.assert_allclose(vx.metrics.mutual_information(mean, np.ones((50, 1))), np.log(50), rtol=1e-9)


def test_information_repeats_under_its_seed() -> None:
    mean, var = RNG.normal(size=(300, 3)), np.full((300, 3), 0.2)
    one, two = (vx.metrics.mutual_information(mean, var, n_cells=100, rng=3) for _ in range(2))
    assert one == two


def test_shapes_and_signs_are_checked() -> None:
    with pytest.raises(ValueError, match="the same shape"):
        vx.metrics.kl_per_dimension(np.zeros((3, 2)), np.ones((3, 1)))
    with pytest.raises(ValueError, match="positive"):
        vx.metrics.mutual_information(np.zeros((3, 2)), np.zeros((3, 2)))


@pytest.mark.parametrize("convert", [pd.DataFrame, sparse.csr_matrix, np.ndarray.tolist])
def test_matrices_of_any_type_give_the_same_numbers(convert: Callable[[np.ndarray], Any]) -> None:
    mean_nd, var_nd = np.random.default_rng(0).normal(size=(20, 3)), np.full((20, 3), 0.5)
    mean, var = convert(mean_nd), convert(var_nd)
    np.testing.assert_array_equal(vx.metrics.active_units(mean), vx.metrics.active_units(mean_nd))
    # to rounding: pandas holds columns together in memory, so sums run in another order
    for function, given, expected in (
        (vx.metrics.kl_per_dimension, (mean, var), (mean_nd, var_nd)),
        (vx.metrics.log_aggregate_posterior, (mean, mean, var), (mean_nd, mean_nd, var_nd)),
        (vx.metrics.mutual_information, (mean, var), (mean_nd, var_nd)),
    ):
        np.testing.assert_allclose(function(*given), function(*expected), rtol=1e-13)


@pytest.mark.parametrize("wrong", [np.full((20, 3), np.nan), np.ones(20), "x", None, [[1.0], [1.0, 2.0]]])
def test_what_is_not_a_matrix_of_numbers_is_refused(wrong: Any) -> None:
    good = np.ones((20, 3))
    for call in (
        lambda: vx.metrics.active_units(wrong),
        lambda: vx.metrics.kl_per_dimension(wrong, good),
        lambda: vx.metrics.log_aggregate_posterior(wrong, good, good),
        lambda: vx.metrics.mutual_information(wrong, good),
    ):
        with pytest.raises(ValueError, match="cells x latent dimensions"):
            call()
    with pytest.raises(ValueError, match="2 columns and the posteriors have 3"):
        vx.metrics.log_aggregate_posterior(np.ones((4, 2)), good, good)
