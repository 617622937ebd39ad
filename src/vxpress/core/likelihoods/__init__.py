"""Likelihoods: the distribution of a cell's counts given the decoder's output, one file each."""

from vxpress.core.likelihoods.base import Decoded, Likelihood
from vxpress.core.likelihoods.bernoulli import Bernoulli
from vxpress.core.likelihoods.gaussian import CP10K, MIN_GAUSSIAN_VARIANCE, Gaussian, log_cp10k
from vxpress.core.likelihoods.negative_binomial import NegativeBinomial
from vxpress.core.likelihoods.poisson import Poisson
from vxpress.core.likelihoods.zero_inflated import ZeroInflated, ZeroInflatedNegativeBinomial
from vxpress.core.registries import LIKELIHOODS

__all__ = [
    "CP10K",
    "LIKELIHOODS",
    "MIN_GAUSSIAN_VARIANCE",
    "Bernoulli",
    "Decoded",
    "Gaussian",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "ZeroInflated",
    "ZeroInflatedNegativeBinomial",
    "log_cp10k",
]

LIKELIHOODS.register("nb", NegativeBinomial)
LIKELIHOODS.register("zinb", ZeroInflatedNegativeBinomial)
LIKELIHOODS.register("poisson", Poisson)
LIKELIHOODS.register("gaussian", Gaussian)
LIKELIHOODS.register("bernoulli", Bernoulli)
