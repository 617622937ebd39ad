"""Counts without their background, for likelihoods that are a mixture of background and foreground."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vxpress.core.covariates import Covariates
from vxpress.core.inference.posterior import Encoded
from vxpress.core.likelihoods import Likelihood, NegativeBinomialMixture
from vxpress.core.model import VAE


def has_background(likelihood: type[Likelihood]) -> bool:
    """Return whether counts of this likelihood come from a background or a foreground."""
    return issubclass(likelihood, NegativeBinomialMixture)


@torch.no_grad()
def foreground_counts(
    model: VAE, encoded: Encoded, covariates: Covariates, x_nf: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Multiply counts by the probability that they come from the foreground, given the count and the posterior mean.

    Their expectation is the foreground rate times the probability of the foreground, the decoded value of the model.
    """
    model.eval()
    x = torch.from_numpy(np.ascontiguousarray(x_nf, dtype=np.float32))
    nothing_n1 = torch.zeros(len(x), 1)
    found = model.likelihood(encoded.posterior(model).mean(), covariates, nothing_n1)
    assert isinstance(found, NegativeBinomialMixture)  # noqa: S101 - the caller asks has_background
    return np.asarray((x * found.foreground_probability(x)).double().numpy())
