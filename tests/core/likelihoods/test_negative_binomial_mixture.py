"""The mixture of background and foreground: probabilities, moments, limits, draws, start from data and decoded values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import sparse, stats
from torch import Tensor

from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.likelihoods import NegativeBinomial, NegativeBinomialMixture
from vxpress.core.likelihoods.foreground import BACKGROUND, MIXING, two_components
from vxpress.core.model import build


def f64(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


LOG_BACKGROUND, LOG_ABOVE = f64([[0.5, 1.0, -2.0]]), f64([[2.0, 0.1, 3.0]])
MIXED, LOG_THETA = f64([[0.3, -2.0, 4.0]]), f64([[1.0, 2.0, 0.0]])
MIXTURE = NegativeBinomialMixture(LOG_BACKGROUND, LOG_ABOVE, MIXED, LOG_THETA)
# counts that hold all but 1e-12 of the probability
X = torch.arange(2_000, dtype=torch.float64)[:, None]


def _pmf() -> Tensor:
    """Return the probabilities from scipy, (counts, 3)."""
    low = LOG_BACKGROUND.exp()
    theta, share = LOG_THETA.exp(), torch.sigmoid(MIXED)
    parts = (
        stats.nbinom.pmf(X.numpy(), theta.numpy(), (theta / (theta + mean)).numpy())
        for mean in (low, low + LOG_ABOVE.exp())
    )
    first, second = map(torch.from_numpy, parts)
    return share * first + (1 - share) * second


def test_probabilities_are_those_of_scipy() -> None:
    torch.testing.assert_close(MIXTURE.log_prob(X).exp(), _pmf(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("found", "function"),
    [
        (lambda d: d.mean, lambda x: x),
        (lambda d: d.variance + d.mean.square(), lambda x: x**2),
        (lambda d: d.zero_probability, lambda x: (x == 0).double()),
        (lambda d: d.expected_log1p(torch.zeros(1, 1, dtype=torch.float64)), torch.log1p),
        (lambda d: d.expected_scaled_log1p(f64([[0.2]])), lambda x: torch.log1p(0.2 * x)),
    ],
)
def test_expectations_are_sums_over_counts(
    found: Callable[[NegativeBinomialMixture], Tensor], function: Callable[[Tensor], Tensor]
) -> None:
    expected = (_pmf() * function(X)).sum(0, keepdim=True)
    torch.testing.assert_close(found(MIXTURE), expected, rtol=5e-3, atol=1e-6)


def test_steps_are_sums_of_probabilities() -> None:
    below, upto = MIXTURE.steps(f64([[3.0, 0.0, 12.0]]))
    cumulative = _pmf().cumsum(0)
    expected = torch.stack([cumulative[[3, 0, 12], [0, 1, 2]], f64([0.0, 0.0, 0.0])])
    torch.testing.assert_close(upto[0], expected[0])
    torch.testing.assert_close(below[0], torch.stack((cumulative[2, 0], f64(0.0), cumulative[11, 2])))


def test_a_count_that_is_surely_of_one_component_has_its_probability() -> None:
    x = f64([[0.0, 4.0, 40.0]])
    for logit, log_mean in ((800.0, LOG_BACKGROUND), (-800.0, torch.logaddexp(LOG_BACKGROUND, LOG_ABOVE))):
        mixture = NegativeBinomialMixture(LOG_BACKGROUND, LOG_ABOVE, torch.full_like(MIXED, logit), LOG_THETA)
        torch.testing.assert_close(mixture.log_prob(x), NegativeBinomial(log_mean, LOG_THETA).log_prob(x))


def test_gradients() -> None:
    parts = tuple(part.clone().requires_grad_() for part in (LOG_BACKGROUND, LOG_ABOVE, MIXED, LOG_THETA))
    x = f64([[0.0, 3.0, 900.0]])
    assert torch.autograd.gradcheck(lambda *p: NegativeBinomialMixture(*p).log_prob(x), parts)


def test_draws_have_the_moments_of_the_distribution() -> None:
    n = 200_000
    x = MIXTURE.sample([n], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), MIXTURE.mean, rtol=0.02, atol=0)
    torch.testing.assert_close((x == 0).double().mean(0), MIXTURE.zero_probability, rtol=0.05, atol=0.002)


def test_some_entries_have_the_distribution_of_these_entries() -> None:
    x = f64([[2.0, 5.0]])
    chosen = MIXTURE.at(slice(None), torch.tensor([2, 0]))
    torch.testing.assert_close(chosen.log_prob(x), MIXTURE.log_prob(f64([[5.0, 0.0, 2.0]]))[:, [2, 0]])
    torch.testing.assert_close(chosen.mean, MIXTURE.mean[:, [2, 0]])


def _proteins(n: int = 2_000) -> tuple[Tensor, np.ndarray]:
    """Return counts of a protein in a third of the cells, of one in all cells, and of one in none; and the rates."""
    rng = np.random.default_rng(0)
    rate = np.column_stack([np.where(rng.random(n) < 1 / 3, 400.0, 8.0), np.full(n, 300.0), np.full(n, 5.0)])
    return torch.from_numpy(rng.poisson(rng.gamma(8.0, rate / 8.0)).astype(np.float32)), rate


def test_the_start_finds_the_two_components() -> None:
    x_ng, _ = _proteins()
    low, high, share, sd = two_components(x_ng.log1p())
    assert abs(float(low[0]) - np.log1p(8.0)) < 0.15
    assert abs(float(high[0]) - np.log1p(400.0)) < 0.15
    assert abs(float(share[0]) - 2 / 3) < 0.05
    assert (high >= low).all()
    assert (sd > 0).all()


def test_a_model_of_one_modality_starts_at_the_mean_of_each_protein_and_decodes_the_foreground() -> None:
    x_ng, _ = _proteins()
    n = len(x_ng)
    covariates = Covariates(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0))
    cells = Cells(Counts.from_scipy(sparse.csr_matrix(x_ng.numpy())), torch.zeros(n, 1), covariates)
    model = build(ModelConfig(3, n_latent=2, n_hidden=8, likelihood="nb_mixture"), 0).eval()
    model.start_from(cells, torch.arange(n))
    z_nd = torch.zeros(4, 2)
    with torch.no_grad():
        distribution = model.likelihood({"z": z_nd}, covariates[torch.arange(4)], torch.zeros(4, 1))
        features = model.features({"z": z_nd}, covariates[torch.arange(4)])
        sums = model.decoder.output.sums(model.layers, 4, torch.tensor([1, 0]), None).again(4)
        sums.add(features)
        foreground, _ = sums.mean(4, 1)
    assert isinstance(distribution, NegativeBinomialMixture)
    torch.testing.assert_close(distribution.mean[0].log(), x_ng.mean(0).log(), rtol=0, atol=0.5)
    expected = distribution.foreground.mean * torch.sigmoid(-distribution.mixing)
    torch.testing.assert_close(foreground, expected[:, [1, 0]])
    assert set(model.decoder.heads) == {BACKGROUND, MIXING}
