"""Fitting a model and asking it."""

from vxpress.core.presets import FitOptions
from vxpress.core.training import TrainingError
from vxpress.tl._counterfactual import counterfactual
from vxpress.tl._denoise import denoise
from vxpress.tl._diagnose import diagnose
from vxpress.tl._encode import encode
from vxpress.tl._fit_vae import fit_vae

__all__ = ["FitOptions", "TrainingError", "counterfactual", "denoise", "diagnose", "encode", "fit_vae"]
