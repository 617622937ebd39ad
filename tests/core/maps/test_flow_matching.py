"""Pairs, and the flows that are learned from them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from vxpress.core.maps.bures import Bures
from vxpress.core.maps.flow_matching import FlowMatching, FlowOptions, paired
from vxpress.core.velocity import follow


def test_pairs_have_the_least_sum_of_squared_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(60, 3, generator=generator) for _ in range(2))
    first, second = paired(x, y)
    cost = torch.cdist(x, y).square().double().numpy()
    rows, columns = linear_sum_assignment(cost)
    assert float((first - second).square().sum()) == np.float32(cost[rows, columns].sum()).item() or np.isclose(
        float((first - second).square().sum()), cost[rows, columns].sum()
    )
    assert sorted(second[:, 0].tolist()) == sorted(y[:, 0].tolist())


def test_the_solver_follows_a_linear_field() -> None:
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    steps = [(0.1 * i, 0.1) for i in range(10)]
    np.testing.assert_allclose(follow(x, steps, lambda at, _: -at), x * np.exp(-1.0), rtol=1e-6)


def test_between_normal_distributions_it_is_the_affine_map() -> None:
    generator = torch.Generator().manual_seed(0)
    mix = torch.tensor([[1.0, 0.8], [0.0, 0.6]], dtype=torch.float64)
    source = torch.randn(2000, 2, generator=generator, dtype=torch.float64)
    target = torch.randn(2000, 2, generator=generator, dtype=torch.float64) @ mix + 4.0
    flow, closed = FlowMatching(FlowOptions(n_steps=80)), Bures()
    for fitted in (flow, closed):
        fitted.fit(source, target, None, None, torch.Generator().manual_seed(1))
    gap = (flow(source) - closed(source)).square().mean() / target.var(0).mean()
    assert float(gap) < 0.02


def test_it_learns_two_responses_of_one_population() -> None:
    generator = torch.Generator().manual_seed(0)
    source, draws = (torch.randn(1500, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    target = draws.clone()
    target[:, 0] = 0.3 * draws[:, 0] + 3.0 * draws[:, 1].sign()
    closed, flow = Bures(), FlowMatching(FlowOptions(n_steps=150))
    between = []
    for fitted in (closed, flow):
        fitted.fit(source, target, None, None, torch.Generator().manual_seed(1))
        between.append(float((fitted(source)[:, 0].abs() < 1.0).double().mean()))
    # no treated cell is there
    assert between[0] > 0.2
    assert between[1] < 0.4 * between[0]


def test_the_same_generator_gives_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(50, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    ends = []
    for seed in (3, 3, 4):
        fitted = FlowMatching(FlowOptions(n_steps=5))
        fitted.fit(source, target, None, None, torch.Generator().manual_seed(seed))
        ends.append(fitted(source))
    np.testing.assert_array_equal(ends[0], ends[1])
    assert bool((ends[0] != ends[2]).any())
