"""The mean of normalised, log-transformed counts against a sum over all counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from vxpress.core.likelihoods import LIKELIHOODS
from vxpress.core.likelihoods.base import Decoded, Likelihood

MEANS, THETA, GATE = np.array([0.003, 0.2, 4.0, 90.0, 1500.0]), 1.5, -0.5
SCALES = np.array([0.1, 12.0, 200.0])


def _distribution(name: str) -> Likelihood:
    location = torch.from_numpy(np.log(MEANS)).float().expand(3, -1)
    return LIKELIHOODS[name].from_decoded(
        Decoded(location, torch.zeros(3, 1), torch.full((5,), np.log(THETA)), {"gate": torch.full((3, 5), GATE)})
    )


def _oracle(name: str) -> np.ndarray:
    k = np.arange(60_000)[:, None]
    nb = stats.nbinom.pmf(k, THETA, THETA / (THETA + MEANS))
    p = stats.poisson.pmf(k, MEANS) if name == "poisson" else nb
    plain = np.stack([(p * np.log1p(scale * k)).sum(0) for scale in SCALES])
    return plain / (1.0 + np.exp(GATE)) if name == "zinb" else plain


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("generic", [False, True])
def test_expected_scaled_log1p_is_the_sum_over_counts(name: str, generic: bool) -> None:
    distribution, scale = _distribution(name), torch.from_numpy(SCALES).float()[:, None]
    own = (
        Likelihood.expected_scaled_log1p(distribution, scale) if generic else distribution.expected_scaled_log1p(scale)
    )
    np.testing.assert_allclose(own.numpy(), _oracle(name), rtol=4e-3)
