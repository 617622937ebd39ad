"""The closed form against scipy and identities, and its shrinkage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from vxpress.core.maps.bures import Bures, BuresOptions, optimal


def _normal(n: int, d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix, mean = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((d, d), (d,)))
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + 3.0 * mean


def _fitted(source: Tensor, target: Tensor, shrinkage: float | None = None) -> Bures:
    fitted = Bures(BuresOptions(shrinkage=shrinkage))
    fitted.fit(source, target, None, None, torch.Generator().manual_seed(0))
    return fitted


def test_the_matrix_is_that_of_the_formula() -> None:
    s0, s1 = (torch.cov(_normal(50, 4, seed).T) for seed in (0, 1))
    root = np.real(sqrtm(s0.numpy()))
    inverse = np.linalg.inv(root)
    expected = inverse @ np.real(sqrtm(root @ s1.numpy() @ root)) @ inverse
    found = optimal(s0, s1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found @ s0 @ found, s1, rtol=1e-8, atol=1e-8)


def test_without_shrinkage_moments_are_mapped_exactly() -> None:
    source, target = _normal(200, 5, 0), _normal(80, 5, 1)
    moved = _fitted(source, target, 0.0)(source)
    np.testing.assert_allclose(moved.mean(0), target.mean(0), atol=1e-9)
    np.testing.assert_allclose(torch.cov(moved.T), torch.cov(target.T), atol=1e-8)


def test_full_shrinkage_is_a_shift() -> None:
    source, target = _normal(200, 5, 0), _normal(80, 5, 1)
    np.testing.assert_allclose(
        _fitted(source, target, 1.0)(source) - source,
        (target.mean(0) - source.mean(0)).expand(200, 5),
        atol=1e-8,
    )


def test_shrinkage_vanishes_with_many_cells_that_differ() -> None:
    source, target = _normal(50_000, 3, 0), _normal(50_000, 3, 1)
    moved = torch.cov(_fitted(source, target)(source).T)
    np.testing.assert_allclose(moved, torch.cov(target.T), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 40), (3, 2), (8, 200), (200, 8), (300, 1)])
@pytest.mark.parametrize("shrinkage", [None, 0.0])
def test_it_is_stable_with_fewer_cells_than_dimensions(n: int, m: int, shrinkage: float | None) -> None:
    generator = torch.Generator().manual_seed(2)
    source, target, new = (torch.randn(k, 20, generator=generator, dtype=torch.float64) for k in (n, m, 500))
    moved = _fitted(source, target + 2.0, shrinkage)(new)
    # both populations vary alike, so that the best map is nearly a shift
    assert float(torch.cov(moved.T).diagonal().mean()) == pytest.approx(1.0, rel=0.4)
    np.testing.assert_allclose(moved.mean(0) - new.mean(0), target.mean(0) + 2.0 - source.mean(0), atol=1.5)


def test_the_estimate_is_closer_to_the_best_map_than_without_shrinkage() -> None:
    gaps: dict[float | None, float] = {}
    for shrinkage in (None, 0.0):
        errors = []
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            source, target, new = (torch.randn(25, 10, generator=generator, dtype=torch.float64) for _ in range(3))
            fitted = _fitted(source, target, shrinkage)
            errors.append(float((fitted(new) - new - target.mean(0) + source.mean(0)).square().mean()))
        gaps[shrinkage] = float(np.mean(errors))
    assert gaps[None] < 0.3 * gaps[0.0]
