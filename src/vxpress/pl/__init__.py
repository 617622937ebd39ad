"""Figures of a fit and of its results."""

from vxpress.pl._covariates import covariates
from vxpress.pl._dose_response import dose_response
from vxpress.pl._history import history
from vxpress.pl._kl import kl
from vxpress.pl._latent import latent
from vxpress.pl._perturbation import perturbation
from vxpress.pl._perturbation_similarity import perturbation_similarity
from vxpress.pl._posterior import posterior
from vxpress.pl._predictive_check import predictive_check
from vxpress.pl._trajectory import trajectory
from vxpress.pl._volcano import volcano

__all__ = [
    "covariates",
    "dose_response",
    "history",
    "kl",
    "latent",
    "perturbation",
    "perturbation_similarity",
    "posterior",
    "predictive_check",
    "trajectory",
    "volcano",
]
