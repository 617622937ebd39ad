from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from vxpress.core.config import PriorConfig
from vxpress.core.normal import gaussian_kl
from vxpress.core.priors import StandardNormal


def _q() -> Normal:
    loc = torch.tensor([[-3.0, 0.0, 0.5], [10.0, 1e-4, -0.2]], dtype=torch.float64)
    return Normal(loc, torch.tensor([[1e-2, 1.0, 3.0], [0.3, 1.0001, 50.0]], dtype=torch.float64))


def test_gaussian_kl_against_torch() -> None:
    q, loc, scale = _q(), torch.tensor([0.3, -1.0, 0.0], dtype=torch.float64), torch.tensor([[0.1], [7.0]]).double()
    exact = kl_divergence(q, Normal(loc, scale))
    torch.testing.assert_close(gaussian_kl(q, loc, scale.square()), exact, rtol=1e-13, atol=1e-15)


def test_the_divergence_is_zero_for_equal_distributions_and_positive_otherwise() -> None:
    q = _q()
    itself = gaussian_kl(q, q.loc, q.scale.square())
    torch.testing.assert_close(itself, torch.zeros_like(itself), rtol=0, atol=1e-15)
    assert (gaussian_kl(q, q.loc + 0.1, q.scale.square()) > 0).all()


def test_standard_normal_log_prob_and_kl() -> None:
    q, prior = _q(), StandardNormal(PriorConfig(), 3)
    exact = Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc))
    torch.testing.assert_close(prior.log_prob(q.loc), exact.log_prob(q.loc).sum(-1))
    torch.testing.assert_close(prior.kl(q), kl_divergence(q, exact), rtol=1e-13, atol=1e-15)
