"""Convexity and gradient of the networks, and the map they learn."""

from __future__ import annotations

import numpy as np
import torch

from vxpress.core.isolation import seeded
from vxpress.core.maps.bures import Bures
from vxpress.core.maps.icnn import Convex, Icnn, IcnnOptions


def _trained_like(d: int = 3) -> Convex:
    with seeded(0):
        network = Convex(torch.eye(d, dtype=torch.float64)).double()
        with torch.no_grad():
            network.out.add_(torch.rand(len(network.out)) - 0.3)
            for weight in network.hidden:
                weight.add_(0.1 * torch.randn(weight.shape))
    network.project()
    return network


def test_the_network_is_convex() -> None:
    network = _trained_like()
    generator = torch.Generator().manual_seed(1)
    x, y = (3.0 * torch.randn(500, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.rand(500, generator=generator, dtype=torch.float64)
    between = network(t[:, None] * x + (1 - t[:, None]) * y)
    assert bool((between <= t * network(x) + (1 - t) * network(y) + 1e-9).all())
    assert bool((network.out >= 0).all())
    assert bool((network.out == 0).any())


def test_the_gradient_is_the_derivative_and_monotone() -> None:
    network = _trained_like()
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h = 1e-5 * torch.eye(3, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([(network(x + step) - network(x - step)) / 2e-5 for step in h], dim=1)
    found = network.gradient(x).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert bool((((found[:10] - found[10:]) * (x[:10] - x[10:])).sum(1) >= 0).all())


def test_it_begins_at_the_map_between_normal_distributions_and_improves_on_it() -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(1500, 2, generator=generator, dtype=torch.float64)
    draws = torch.randn(1500, 2, generator=generator, dtype=torch.float64)

    def truth(x: torch.Tensor) -> torch.Tensor:
        """The gradient of |x|^2 / 2 + 3 log cosh(2 x_1) / 2: cells at both sides of 0 move apart."""
        return x + torch.stack((3.0 * torch.tanh(2.0 * x[:, 0]), torch.ones(len(x)).double()), dim=1)

    errors = []
    for fitted in (Bures(), Icnn(IcnnOptions(n_steps=1)), Icnn(IcnnOptions(n_steps=200))):
        fitted.fit(source, truth(draws), None, None, torch.Generator().manual_seed(0))
        errors.append(float((fitted(source) - truth(source)).square().mean()))
    np.testing.assert_allclose(errors[1], errors[0], rtol=0.05)
    assert errors[2] < 0.5 * errors[0]
