"""Properties of all priors."""

from __future__ import annotations

import copy
import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from vxpress.core.config import ModelConfig, PriorConfig
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors import PRIORS, Prior, sampled_kl
from vxpress.core.priors.fitting import build_prior, learn

KINDS = list(PRIORS)
LEARNED = [kind for kind in KINDS if kind != "normal"]
# in the mixture of labels, cells of the last condition have no label
ALIKE = [kind for kind in LEARNED if kind != "label_mixture"]
COMPONENTS = 6


def posteriors(d: int, n: int = 600, seed: int = 0) -> DiagonalNormal:
    """Simulate posteriors in two clusters, one of them narrow."""
    rng = np.random.default_rng(seed)
    clump = rng.integers(2, size=n)
    mean = rng.normal(size=(n, d)) * np.where(clump, 0.2, 0.6)[:, None] + np.where(clump, 1.5, -1.0)[:, None]
    return DiagonalNormal(torch.tensor(mean, dtype=torch.float32), torch.full((n, d), 0.3))


@functools.cache
def learned(kind: str, d: int, n_conditions: int = 0) -> Prior:
    """Return a trained prior, because initial priors are normal distributions and would not test enough."""
    return _learn(kind, d, n_conditions)


def _learn(kind: str, d: int, n_conditions: int = 0) -> Prior:
    prior = build_prior(PriorConfig.of(kind, n_conditions, n_components=COMPONENTS), d, seed=0)
    q = posteriors(d)
    code = (q.loc[:, 0] > 0.2).long() if n_conditions else None
    learn(prior, q, code, n_steps=60, seed=0)
    return prior


def _grid(d: int) -> tuple[torch.Tensor, float]:
    if d == 1:
        at = torch.linspace(-7, 7, 1401, dtype=torch.float64)
        return at[:, None], float(at[1] - at[0])
    at = torch.linspace(-5, 5, 91, dtype=torch.float64)
    return torch.cartesian_prod(at, at), float(at[1] - at[0]) ** 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2])
def test_the_density_integrates_to_one(kind: str, d: int) -> None:
    prior = learned(kind, d)
    z, cell = _grid(d)
    with torch.no_grad():
        assert float(prior.log_prob(z).exp().sum()) * cell == pytest.approx(1.0, abs=4e-3)


@pytest.mark.parametrize("kind", ALIKE)
def test_each_condition_has_a_density_and_their_mixture_is_the_marginal(kind: str) -> None:
    prior = learned(kind, 1, n_conditions=2)
    z, cell = _grid(1)
    with torch.no_grad():
        parts = torch.stack([prior.log_prob(z, torch.tensor(c)) for c in range(2)])
        marginal = prior.log_prob(z)
    for part in parts:
        assert float(part.exp().sum()) * cell == pytest.approx(1.0, abs=4e-3)
    share = float((posteriors(1).loc[:, 0] > 0.2).float().mean())
    assert prior.log_share_c.exp().tolist() == pytest.approx([1 - share, share], abs=1e-6)
    by_hand = (parts.exp() * torch.tensor([[1 - share], [share]])).sum(0)
    torch.testing.assert_close(marginal.exp(), by_hand, rtol=1e-4, atol=1e-6)
    # the conditions differ like their cells
    assert float((parts[0].exp() * z[:, 0]).sum() * cell) < 0 < float((parts[1].exp() * z[:, 0]).sum() * cell)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_density(kind: str) -> None:
    prior, n = learned(kind, 1), 4000
    z, cell = _grid(1)
    draws = prior.sample(n, torch.Generator().manual_seed(1))[:, 0].numpy()
    with torch.no_grad():
        cdf = np.cumsum(prior.log_prob(z).exp().numpy()) * cell
    p = stats.kstest(draws, lambda x: np.interp(x, z[:, 0].numpy(), cdf)).pvalue
    assert p > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_samples_in_two_dimensions_have_the_entropy_of_the_density(kind: str) -> None:
    prior = learned(kind, 2)
    z, cell = _grid(2)
    with torch.no_grad():
        log_p = prior.log_prob(z)
        entropy = -float((log_p.exp() * log_p).sum()) * cell
        drawn = -prior.log_prob(prior.sample(2000, torch.Generator().manual_seed(2)).double())
    assert abs(float(drawn.mean()) - entropy) < 4 * float(drawn.std()) / math.sqrt(2000) + 5e-3


@pytest.mark.parametrize("kind", ALIKE)
def test_conditional_samples_are_near_their_condition(kind: str) -> None:
    prior = learned(kind, 2, n_conditions=2)
    code = torch.arange(2).repeat(500)
    z = prior.sample(1000, torch.Generator().manual_seed(0), code)
    q = posteriors(2)
    cells = q.loc[:, 0] > 0.2
    for c, own in enumerate((~cells, cells)):
        assert float((z[code == c].mean(0) - q.loc[own].mean(0)).abs().max()) < 0.25
    without = prior.sample(4000, torch.Generator().manual_seed(0))
    assert float((without.mean(0) - q.loc.mean(0)).abs().max()) < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_variance_is_that_of_the_samples(kind: str) -> None:
    prior = learned(kind, 2)
    drawn = prior.sample(8000, torch.Generator().manual_seed(5)).var(0)
    torch.testing.assert_close(prior.variance().float(), drawn, rtol=0.12, atol=0.0)


@pytest.mark.parametrize("kind", LEARNED)
def test_learning_beats_a_normal_distribution_and_depends_only_on_its_seed(kind: str) -> None:
    state = torch.random.get_rng_state()
    first, again = learned(kind, 2), _learn(kind, 2)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    q = posteriors(2, seed=1)
    z = q.draw(torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        normal = torch.distributions.MultivariateNormal(z.mean(0), z.t().cov()).log_prob(z)
        assert float(first.log_prob(z).mean()) > float(normal.mean())


@pytest.mark.parametrize("kind", [kind for kind in LEARNED if PRIORS[kind].cheap])
def test_gradients_of_the_density(kind: str) -> None:
    prior = copy.deepcopy(learned(kind, 2)).double()
    z = torch.tensor([[0.3, -0.4], [1.4, 1.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(prior.log_prob, (z,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_agrees_with_the_density(kind: str) -> None:
    # KL(q || p) = E_q [log q - log p], estimated from draws with standard error
    prior = learned(kind, 2)
    q = DiagonalNormal(torch.tensor([[0.4, -1.0], [1.5, 1.4]]), torch.tensor([[0.5, 0.8], [0.2, 0.3]]))
    found = sampled_kl(prior, q, 300, seed=1)
    z, cell = _grid(2)
    with torch.no_grad():
        log_p = prior.log_prob(z)
        for i in range(2):
            log_q = DiagonalNormal(q.loc[i].double(), q.scale[i].double()).log_prob(z)
            exact = float((log_q.exp() * (log_q - log_p)).sum()) * cell
            assert abs(found.kl_n[i] - exact) < 4 * found.se_n[i] + 5e-3
    assert found.mean == pytest.approx(found.kl_n.mean())
    assert found.se == pytest.approx(math.hypot(*found.se_n) / 2)
    assert (found.se == 0) == prior.analytic


@pytest.mark.parametrize("kind", KINDS)
def test_leading_axes_and_precision(kind: str) -> None:
    prior = learned(kind, 2, n_conditions=2)
    z = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    code = torch.tensor([0, 1, 1, 0, 1])
    with torch.no_grad():
        found = prior.log_prob(z, code)
        assert found.shape == (3, 5)
        assert found.dtype == torch.float64
        for k in range(3):
            torch.testing.assert_close(found[k], prior.log_prob(z[k], code), rtol=1e-4, atol=1e-4)
        assert prior.log_prob(z.float()).dtype == torch.float32


def test_weights_of_every_prior_have_known_shapes_on_the_meta_device() -> None:
    for kind in KINDS:
        config = ModelConfig(
            n_genes=7, n_latent=3, norm="layer", prior=PriorConfig.of(kind, 2, n_components=COMPONENTS)
        )
        from vxpress.core.model import build, expected_shapes

        state = build(config, 0).state_dict()
        assert expected_shapes(config) == {name: tuple(value.shape) for name, value in state.items()}
        assert all(value.dtype.is_floating_point for value in state.values())
