from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vxpress.core.config import PriorConfig
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors import PRIORS
from vxpress.core.priors import gaussian_path as gp
from vxpress.core.priors.fitting import build_prior, learn

KINDS = ["diffusion", "flow_matching"]
SPREAD = 0.4


class GaussianVelocity(gp.Velocity):
    """The optimal prediction if z is N(0, SPREAD^2 I): E[v | x] = cov(v, x) / var(x) x, in closed form."""

    def context(self, phi: torch.Tensor, condition_n: torch.Tensor | None) -> torch.Tensor:
        return phi.double()[:, None]

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        cos, sin = context.cos(), context.sin()
        return sin * cos * (1 - SPREAD**2) / (cos.square() * SPREAD**2 + sin.square()) * x

    def with_divergence(self, x: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self(x, context), self(torch.ones_like(x), context).sum(-1)


def _gaussian(kind: str, d: int) -> Any:
    prior: Any = PRIORS[kind](PriorConfig(kind), d).double()
    prior.velocity = GaussianVelocity(d, 0).double()
    return prior


def _log_normal(z: torch.Tensor, sd: float) -> torch.Tensor:
    return (-0.5 * (z / sd).square() - math.log(sd) - 0.5 * math.log(2 * math.pi)).sum(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_network_of_a_normal_distribution_gives_its_density_and_its_draws(kind: str) -> None:
    prior = _gaussian(kind, 3)
    z = SPREAD * torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # the remaining difference is the error of the solver, and the noise of 1.1 % at the near end
    torch.testing.assert_close(prior.log_prob(z), _log_normal(z, SPREAD), rtol=0.0, atol=0.02)
    drawn = prior.sample(20_000, torch.Generator().manual_seed(1))
    assert drawn.std(0).tolist() == pytest.approx([SPREAD] * 3, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_the_initial_prior_is_the_standard_normal(kind: str) -> None:
    prior = build_prior(PriorConfig(kind), 4, 0)
    z = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(z), _log_normal(z, 1.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exact", [False, True])
def test_the_bound_is_tight_for_the_best_network(kind: str, exact: bool) -> None:
    prior: Any
    prior, sd = (_gaussian(kind, 3), SPREAD) if exact else (build_prior(PriorConfig(kind), 3, 0).double(), 1.0)
    z = sd * torch.randn(1, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).expand(20_000, -1)
    with torch.no_grad():
        bound = prior.bound(z, None, torch.Generator().manual_seed(0))
    error = float(bound.std()) / math.sqrt(20_000)
    assert abs(float(bound.mean() + _log_normal(z[:1], sd))) < 4 * error + 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_above_the_divergence(kind: str) -> None:
    prior: Any = build_prior(PriorConfig(kind), 2, 0)
    generator = torch.Generator().manual_seed(0)
    q = DiagonalNormal(
        torch.where(torch.rand(500, 1, generator=generator) < 0.5, -1.5, 1.5).expand(-1, 2), torch.full((500, 2), 0.3)
    )
    learn(prior, q, None, n_steps=100, seed=0)
    one = DiagonalNormal(q.loc[:1].expand(6000, -1), q.scale[:1].expand(6000, -1))
    with torch.no_grad():
        z = one.draw(generator)
        bound = prior.kl(one, z)[:, 0]
        exact = one[:600].log_prob(z[:600]) - prior.log_prob(z[:600])
    error = float(bound.std()) / math.sqrt(6000) + float(exact.std()) / math.sqrt(600)
    assert float(bound.mean()) > float(exact.mean()) - 4 * error
    assert float(bound.mean()) < float(exact.mean()) + 1.0


def test_the_divergence_of_the_network_is_the_trace_of_its_jacobian() -> None:
    generator = torch.Generator().manual_seed(0)
    net = gp.Velocity(4, 2).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    context = net.context(torch.full((5,), 0.7), torch.tensor([0, 1, 1, 0, 1]))
    value, divergence = net.with_divergence(x, context)
    torch.testing.assert_close(value, net(x, context))
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda at, i=i: net(at[None], context[i : i + 1])[0], x[i])
        torch.testing.assert_close(divergence[i], jacobian.trace())


def test_velocity_of_flow_matching_in_its_own_coordinates() -> None:
    # |u - u_hat|^2 of the linear path is |v - f|^2 / (t^2 + (1 - t)^2) for any f
    generator = torch.Generator().manual_seed(0)
    z, eps, f = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
    kind: Any = PRIORS["flow_matching"]
    phi, weight = kind(PriorConfig("flow_matching"), 2).angles(torch.linspace(0, 1, 6, dtype=torch.float64))
    cos, sin = phi.cos()[:, None], phi.sin()[:, None]
    v, x = cos * eps - sin * z, cos * z + sin * eps
    hat_z, hat_eps = cos * x - sin * f, sin * x + cos * f
    error = ((z - eps) - (hat_z - hat_eps)).square().sum(-1)
    torch.testing.assert_close(error, weight * (v - f).square().sum(-1))
    t = 1 / (1 + phi.tan())
    torch.testing.assert_close(x / x.norm(), (t[:, None] * z + (1 - t[:, None]) * eps) * (cos + sin) / x.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_repeats_its_noise_and_training_does_not(kind: str) -> None:
    prior: Any = build_prior(PriorConfig(kind), 2, 0)
    q = DiagonalNormal(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.full((8, 2), 0.3))
    prior.eval()
    assert torch.equal(prior.kl(q, q.loc), prior.kl(q, q.loc))
    prior.train()
    assert not torch.equal(prior.kl(q, q.loc), prior.kl(q, q.loc))
