"""Paired counts follow the second distribution, and keep what does not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from vxpress.core.inference.paired import paired_counts, quantile, spread
from vxpress.core.likelihoods import LIKELIHOODS
from vxpress.core.likelihoods.base import Decoded, Likelihood


def distribution(name: str, mean: float, theta: float = 2.0, n: int = 20_000) -> Likelihood:
    decoded = Decoded(
        torch.full((n, 1), np.log(mean)),
        torch.zeros(n, 1),
        torch.full((1,), np.log(theta)),
        {"gate": torch.full((n, 1), -1.0)},
    )
    return LIKELIHOODS[name].from_decoded(decoded)


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize(("before", "after"), [(0.3, 3.0), (5.0, 0.4), (900.0, 2000.0)])
def test_paired_counts_follow_the_distribution_after_the_change(name: str, before: float, after: float) -> None:
    first, second = distribution(name, before), distribution(name, after)
    x = first.sample(generator=torch.Generator().manual_seed(0))
    paired = paired_counts(x, first, second, spread(len(x), x.shape[1], 1))
    drawn = second.sample(generator=torch.Generator().manual_seed(2))
    assert stats.ks_2samp(paired[:, 0].numpy(), drawn[:, 0].numpy()).pvalue > 1e-3
    assert paired.mean().item() == pytest.approx(second.mean.mean().item(), rel=0.05)


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
def test_counts_of_an_unchanged_distribution_are_kept(name: str) -> None:
    same = distribution(name, 2.0, n=500)
    x = same.sample(generator=torch.Generator().manual_seed(0))
    # far more than the distribution ever gives
    x[0] = 3000.0
    torch.testing.assert_close(paired_counts(x, same, same, spread(len(x), x.shape[1], 1)), x)


def test_pairs_keep_the_order_of_counts() -> None:
    first, second = distribution("nb", 2.0, n=50), distribution("nb", 20.0, n=50)
    x = torch.arange(50.0)[:, None]
    assert (paired_counts(x, first, second, torch.full((50, 1), 0.5, dtype=torch.float64)).diff(dim=0) >= 0).all()


def test_quantile_agrees_with_scipy() -> None:
    level = torch.tensor(np.random.default_rng(0).uniform(size=(300, 1)))
    theta, mean = 1.7, 40.0
    expected = stats.nbinom.ppf(level.numpy(), theta, theta / (theta + mean))
    found = quantile(distribution("nb", mean, theta, n=300), level)
    np.testing.assert_array_equal(found.numpy(), expected)
