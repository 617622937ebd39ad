"""Broadcasting, gradients and random draws of the likelihoods."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from vxpress.core.likelihoods import Bernoulli, Gaussian, Likelihood, NegativeBinomial, Poisson, ZeroInflated

N, G = 3, 4
X = torch.tensor([[0, 1, 2, 40], [0, 0, 7, 300], [5, 0, 0, 0]], dtype=torch.float64)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, N])
def test_gradients(rows: int) -> None:
    log_mean, gate = _normal(N, G, seed=1).requires_grad_(), _normal(N, G, seed=2).requires_grad_()
    log_theta = (2 * _normal(rows, G, seed=3)).requires_grad_()
    library = torch.tensor([[100.0], [400.0], [5.0]], dtype=torch.float64)
    distributions: list[tuple[Callable[..., Likelihood], tuple[Tensor, ...]]] = [
        (NegativeBinomial, (log_mean, log_theta)),
        (lambda m, t, g: ZeroInflated(NegativeBinomial(m, t), g), (log_mean, log_theta, gate)),
        (lambda m, g: ZeroInflated(Poisson(m), g), (log_mean, gate)),
        (Poisson, (log_mean,)),
        (Bernoulli, (log_mean,)),
        (lambda m, t: Gaussian(m, 1e-3 + t.exp(), library), (log_mean, log_theta)),
    ]
    for distribution, parameters in distributions:
        assert torch.autograd.gradcheck(lambda *p, distribution=distribution: distribution(*p).log_prob(X), parameters)


def test_a_dispersion_per_gene_is_the_same_dispersion_for_every_cell() -> None:
    log_mean, log_theta = _normal(N, G), _normal(1, G, seed=5)
    exact = NegativeBinomial(log_mean, log_theta.expand(N, G).contiguous())
    for shape in ((1, G), (G,)):
        distribution = NegativeBinomial(log_mean, log_theta.reshape(shape))
        torch.testing.assert_close(distribution.log_prob(X), exact.log_prob(X), rtol=1e-15, atol=0)
        torch.testing.assert_close(distribution.variance, exact.variance)


def test_a_dispersion_per_cell_acts_on_its_own_row() -> None:
    log_mean, log_theta = _normal(N, G), _normal(N, G, seed=6)
    whole = NegativeBinomial(log_mean, log_theta).log_prob(X)
    for n in range(N):
        torch.testing.assert_close(whole[n], NegativeBinomial(log_mean[n], log_theta[n]).log_prob(X[n]))


def test_leading_dimensions_of_the_counts_broadcast() -> None:
    distribution = ZeroInflated(NegativeBinomial(_normal(N, G), _normal(1, G, seed=5)), _normal(N, G, seed=4))
    stacked = torch.stack((X, X + 1))
    torch.testing.assert_close(
        distribution.log_prob(stacked), torch.stack((distribution.log_prob(X), distribution.log_prob(X + 1)))
    )
    torch.testing.assert_close(
        distribution.log_prob(X[0]), torch.stack([distribution.log_prob(X[0].expand(N, G))[n] for n in range(N)])
    )


def test_whole_numbers_are_counts_too() -> None:
    for distribution in (Poisson(_normal(N, G)), NegativeBinomial(_normal(N, G), _normal(1, G))):
        torch.testing.assert_close(distribution.log_prob(X.long()), distribution.log_prob(X), rtol=0, atol=0)


CANDIDATES: dict[str, Likelihood] = {
    "nb": NegativeBinomial(_normal(N, G), _normal(1, G, seed=5)),
    "zinb": ZeroInflated(NegativeBinomial(_normal(N, G), _normal(1, G, seed=5)), _normal(N, G, seed=4)),
    "poisson": Poisson(_normal(N, G)),
    "gaussian": Gaussian(_normal(N, G), _normal(1, G).exp(), torch.ones(N, 1, dtype=torch.float64)),
    "bernoulli": Bernoulli(_normal(N, G)),
}


@pytest.mark.parametrize("name", CANDIDATES)
def test_draws_come_from_the_given_generator_alone(
    name: str, global_noise_untouched: Callable[[], AbstractContextManager[None]]
) -> None:
    distribution = CANDIDATES[name]

    def draw(seed: int) -> Tensor:
        return distribution.sample(torch.Size([50]), generator=torch.Generator().manual_seed(seed))

    with global_noise_untouched():
        first = draw(1)
    torch.manual_seed(99)
    assert torch.equal(first, draw(1))
    assert not torch.equal(first, draw(2))
    assert first.shape == (50, N, G)
    assert first.dtype == torch.float64


def test_rows_are_drawn_independently_where_only_the_gate_has_rows() -> None:
    base = NegativeBinomial(torch.full((1, 1), 5.0, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    distribution = ZeroInflated(base, torch.zeros(20_000, 1, dtype=torch.float64))
    draws = distribution.sample(generator=torch.Generator().manual_seed(0))
    error = float((distribution.variance[0] / 20_000).sqrt())
    assert float(draws.mean()) == pytest.approx(float(distribution.mean[0]), abs=4.5 * error)
    assert float((draws == 0).double().mean()) == pytest.approx(
        float(distribution.log_prob(torch.zeros(1))[0].exp()), abs=0.02
    )


def test_gaussian_draws_have_its_moments() -> None:
    distribution = Gaussian(torch.tensor([2.0, -1.0]), torch.tensor([4.0, 1e-3]), torch.ones(1))
    draws = distribution.sample(torch.Size([40_000]), generator=torch.Generator().manual_seed(0))
    assert ((draws.mean(0) - distribution.mean).abs() < 4.5 * (distribution.variance / 40_000).sqrt()).all()
    torch.testing.assert_close(draws.var(0), distribution.variance, rtol=0.04, atol=0)
