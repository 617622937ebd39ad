from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from vxpress.core.config import PriorConfig
from vxpress.core.normal import DiagonalNormal, gaussian_kl
from vxpress.core.priors import sampled_kl
from vxpress.core.priors.components import component_log_prob, conditional_k_means, k_means
from vxpress.core.priors.mixture import Mixture


def _mixture(n_components: int, d: int, n_conditions: int = 0) -> Mixture:
    prior = Mixture(PriorConfig.of("mixture", n_conditions, n_components=n_components), d)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in prior.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return prior


def test_log_prob_against_scipy() -> None:
    prior = _mixture(3, 2)
    z = np.random.default_rng(0).normal(size=(9, 2)) * 3
    loc, scale = (part.detach().double().numpy() for part in prior.components())
    weight = prior.logits_ck.detach().double().softmax(-1)[0].numpy()
    density = sum(
        w * stats.multivariate_normal(m, np.diag(s**2)).pdf(z) for w, m, s in zip(weight, loc, scale, strict=True)
    )
    np.testing.assert_allclose(prior.log_prob(torch.from_numpy(z)).detach().numpy(), np.log(density), rtol=1e-9)


def test_narrow_components_far_from_the_origin_are_accurate() -> None:
    loc = torch.tensor([[50.0, -40.0], [50.001, -40.0]])
    scale = torch.full((2, 2), 0.01)
    z = torch.tensor([[50.0005, -40.01]], dtype=torch.float64)
    exact = DiagonalNormal(loc.double(), scale.double()).log_prob(z)
    torch.testing.assert_close(component_log_prob(z, loc, scale)[0], exact, rtol=1e-6, atol=1e-6)


def test_one_component_has_the_divergence_of_its_closed_form() -> None:
    prior = _mixture(1, 3)
    generator = torch.Generator().manual_seed(0)
    q = DiagonalNormal(torch.randn(40, 3, generator=generator), torch.rand(40, 3, generator=generator) + 0.1)
    loc, scale = prior.components()
    exact = gaussian_kl(q, loc[0], scale[0].square()).sum(-1).detach().double().numpy()
    found = sampled_kl(prior, q, 300, seed=0)
    assert np.abs((found.kl_n - exact) / found.se_n).max() < 4.5
    assert abs(found.mean - exact.mean()) < 4 * found.se
    # the standard error is estimated from repetitions
    means = [sampled_kl(prior, q, 30, seed=s).mean for s in range(60)]
    assert np.std(means) == pytest.approx(sampled_kl(prior, q, 30, seed=0).se, rel=0.4)


def test_conditions_share_components_with_separate_weights() -> None:
    prior = _mixture(4, 2, n_conditions=3)
    prior.set_shares(torch.tensor([0, 0, 1, 2, 2, 2]))
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts = torch.stack([prior.log_prob(z, torch.tensor(c)) for c in range(3)])
    share = torch.tensor([2, 1, 3], dtype=torch.float64)[:, None] / 6
    torch.testing.assert_close(prior.log_prob(z).exp(), (share * parts.exp()).sum(0), rtol=1e-6, atol=0.0)


def test_k_means_finds_clusters_in_every_condition() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    label = torch.randint(3, (300,), generator=generator)
    z = truth[label] + 0.3 * torch.randn(300, 2, generator=generator)
    centres, found = k_means(z, 3, generator)
    for c in range(3):
        own = found[label == c]
        assert (own == own[0]).all()
        assert float((centres[own[0]] - truth[c]).norm()) < 0.2
    centres, found = conditional_k_means(z, label, 7, generator)
    assert len(centres) == 7
    assert all(set(found[label == a].tolist()).isdisjoint(found[label == b].tolist()) for a, b in ((0, 1), (1, 2)))
    with pytest.raises(ValueError, match="too few for"):
        conditional_k_means(z, label, 2, generator)


def test_more_components_than_cells() -> None:
    prior = Mixture(PriorConfig.of("mixture", n_components=10), 2)
    q = DiagonalNormal(torch.zeros(4, 2), torch.ones(4, 2))
    prior.start_from_posteriors(q, None, torch.Generator().manual_seed(0))
    assert torch.isfinite(prior.log_prob(q.loc)).all()
