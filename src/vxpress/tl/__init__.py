"""Fitting a model and asking it."""

from vxpress.core.presets import FitOptions
from vxpress.core.training import TrainingError
from vxpress.tl._denoise import denoise
from vxpress.tl._diagnose import diagnose
from vxpress.tl._encode import encode
from vxpress.tl._fit_vae import fit_vae
from vxpress.tl._rank_genes_groups import rank_genes_groups

__all__ = ["FitOptions", "TrainingError", "denoise", "diagnose", "encode", "fit_vae", "rank_genes_groups"]
