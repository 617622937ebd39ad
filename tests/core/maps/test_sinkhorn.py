"""Entropic transport against POT, and its extension to new cells."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from vxpress.core.maps import sinkhorn
from vxpress.core.maps.base import Pair
from vxpress.core.maps.sinkhorn import Sinkhorn, SinkhornOptions, subsample


def _cells(n: int, m: int, d: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source, target = (torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (n, m))
    return source, 0.7 * target + torch.arange(d)


def _fitted(source: Tensor, target: Tensor, **options: object) -> Sinkhorn:
    fitted = Sinkhorn(SinkhornOptions(**options))
    fitted.fit(source, target, None, None, torch.Generator().manual_seed(0))
    return fitted


def _cost(source: Tensor, target: Tensor) -> np.ndarray:
    cost = ot.dist(source.numpy() - source.numpy().mean(0), target.numpy() - source.numpy().mean(0))
    return cost / torch.from_numpy(cost).median().item()


def test_cells_move_to_the_averages_of_the_plan() -> None:
    source, target = _cells(40, 30)
    plan = ot.sinkhorn(np.full(40, 1 / 40), np.full(30, 1 / 30), _cost(source, target), 0.1, stopThr=1e-12)
    expected = plan @ target.numpy() / plan.sum(1, keepdims=True)
    found = _fitted(source, target, epsilon=0.1, debiased=False)(source)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_unbalanced_cells_move_to_the_averages_of_the_unbalanced_plan() -> None:
    source, target = _cells(40, 30)
    # a type of treated cells without a counterpart, far away
    target = torch.cat((target, target[:10] + 8.0))
    cost, masses = _cost(source, target), (np.full(40, 1 / 40), np.full(40, 1 / 40))
    plan = ot.unbalanced.sinkhorn_unbalanced(*masses, cost, 0.1, 0.2, stopThr=1e-12, numItermax=10_000)
    expected = plan @ target.numpy() / plan.sum(1, keepdims=True)
    found = _fitted(source, target, epsilon=0.1, unbalanced=0.2, debiased=False)(source)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    balanced = _fitted(source, target, epsilon=0.1, debiased=False)(source)
    near = target[:30].mean(0)
    assert float((found.mean(0) - near).norm()) < 0.5 * float((balanced.mean(0) - near).norm())


def test_new_cells_move_as_their_neighbours_do() -> None:
    source, target = _cells(60, 60)
    fitted = _fitted(source, target)
    moved = fitted(source)
    np.testing.assert_allclose(fitted(source + 1e-6), moved, atol=1e-4)
    np.testing.assert_allclose(fitted(source[:7]), moved[:7], rtol=1e-12)


def test_a_debiased_map_keeps_the_spread_and_of_cells_to_themselves_is_the_identity() -> None:
    source, target = _cells(300, 300)
    spreads = [float(_fitted(source, target, epsilon=0.2, debiased=d)(source).var(0).mean()) for d in (False, True)]
    truth = float(target.var(0).mean())
    assert spreads[0] < 0.75 * truth
    assert spreads[1] == pytest.approx(truth, rel=0.15)
    np.testing.assert_allclose(_fitted(source, source)(source), source, atol=1e-3)


def test_subsamples_keep_the_weights_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [torch.zeros(1000, 1), torch.ones(10, 1)]
    pairs = [Pair(g, g, torch.zeros(1), 0.5) for g in groups]
    for size, n in ((100, 60), (2000, 1010)):
        cells, mass = subsample(groups, pairs, torch.Generator().manual_seed(0), size)
        assert len(cells) == n
        assert float(mass @ cells[:, 0].double()) == pytest.approx(0.5)
    # several problems of a few cells each give nearly the map of one problem
    source, target = _cells(900, 900)
    one = _fitted(source, target, epsilon=0.2)(source[:200])
    monkeypatch.setattr(sinkhorn, "SIZE", 300)
    several = _fitted(source, target, epsilon=0.2)(source[:200])
    assert float((one - several).square().mean()) < 0.05 * float(target.var(0).mean())


def test_pot_is_imported_without_libraries_that_are_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", ModuleType("jax"))
    monkeypatch.setenv("POT_BACKEND_DISABLE_CUPY", "")
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    before = dict(os.environ)
    with sinkhorn._without_backends():
        added = {name: value for name, value in os.environ.items() if name not in before}
    # a library that is in use stays, and so does what the user has set
    assert added == {"POT_BACKEND_DISABLE_TENSORFLOW": "1"}
    assert dict(os.environ) == before
    assert sinkhorn.pot() is ot


def test_the_map_of_many_cells_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    target, x = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (50, 333))
    averages = sinkhorn.Averages(target, torch.zeros(50, dtype=torch.float64), 1.0)
    whole = averages(x)
    monkeypatch.setattr(sinkhorn, "HELD", 500)
    np.testing.assert_allclose(averages(x), whole, rtol=1e-12)
