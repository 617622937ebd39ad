"""Paths in the latent space."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from vxpress.bridge.ask.interpolation import Method
from vxpress.core.maps.paths import PATHS, linear_path, spherical_path

POSITION = np.linspace(0, 1, 9)


def test_the_registry_has_the_names_that_interpolate_takes() -> None:
    assert tuple(PATHS) == get_args(Method)


def test_linear_path_is_a_straight_line_with_even_steps() -> None:
    start, end = np.array([1.0, -2.0, 0.5]), np.array([0.0, 3.0, 1.0])
    path = linear_path(start, end, POSITION)
    np.testing.assert_array_equal(path[[0, -1]], [start, end])
    np.testing.assert_allclose(np.diff(path, 2, axis=0), 0.0, atol=1e-12)


def test_spherical_path_changes_angle_and_norm_evenly() -> None:
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 6)) * [[1.0], [3.0]]
    path = spherical_path(start, end, POSITION)
    np.testing.assert_allclose(path[[0, -1]], [start, end], atol=1e-12)
    norm = np.linalg.norm(path, axis=1)
    np.testing.assert_allclose(norm, np.linspace(norm[0], norm[-1], 9))
    unit = path / norm[:, None]
    angle = np.arccos((unit[1:] * unit[:-1]).sum(1))
    np.testing.assert_allclose(angle, angle[0], rtol=1e-6)
    assert np.linalg.matrix_rank(path) == 2


def test_spherical_path_between_parallel_ends_is_the_line() -> None:
    start = np.array([1.0, 2.0])
    np.testing.assert_allclose(spherical_path(start, 3 * start, POSITION), linear_path(start, 3 * start, POSITION))


@pytest.mark.parametrize(("end", "message"), [([-1.0, 0.0], "opposite"), ([0.0, 0.0], "one end is at the origin")])
def test_spherical_path_that_does_not_exist_is_refused(end: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spherical_path(np.array([2.0, 0.0]), np.array(end), POSITION)
