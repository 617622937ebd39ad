"""Likelihoods: the distribution of a cell's counts given the decoder's output, one file each."""

from vxpress.core import registry
from vxpress.core.likelihoods.base import Decoded, Likelihood
from vxpress.core.likelihoods.bernoulli import Bernoulli
from vxpress.core.likelihoods.foreground import Foreground
from vxpress.core.likelihoods.gaussian import MIN_GAUSSIAN_VARIANCE, Gaussian
from vxpress.core.likelihoods.layers import Layers
from vxpress.core.likelihoods.levels import CP10K, Levels, log_cp10k
from vxpress.core.likelihoods.negative_binomial import NegativeBinomial
from vxpress.core.likelihoods.negative_binomial_mixture import NegativeBinomialMixture
from vxpress.core.likelihoods.output import Measured, Output, ToReadOut
from vxpress.core.likelihoods.poisson import Poisson
from vxpress.core.likelihoods.shares import Shares
from vxpress.core.likelihoods.sums import Sums
from vxpress.core.likelihoods.zero_inflated import ZeroInflated, ZeroInflatedNegativeBinomial

__all__ = [
    "CP10K",
    "LIKELIHOODS",
    "MIN_GAUSSIAN_VARIANCE",
    "Bernoulli",
    "Decoded",
    "Foreground",
    "Gaussian",
    "Layers",
    "Levels",
    "Likelihood",
    "Measured",
    "NegativeBinomial",
    "NegativeBinomialMixture",
    "Output",
    "Poisson",
    "Shares",
    "Sums",
    "ToReadOut",
    "ZeroInflated",
    "ZeroInflatedNegativeBinomial",
    "log_cp10k",
]

LIKELIHOODS: registry.Registry[type[Likelihood]] = registry.LIKELIHOODS
LIKELIHOODS.register("nb", NegativeBinomial)
LIKELIHOODS.register("zinb", ZeroInflatedNegativeBinomial)
LIKELIHOODS.register("poisson", Poisson)
LIKELIHOODS.register("gaussian", Gaussian)
LIKELIHOODS.register("bernoulli", Bernoulli)
LIKELIHOODS.register("nb_mixture", NegativeBinomialMixture)
