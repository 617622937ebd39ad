"""Tools: fit a model and use it."""

from vxpress.bridge.ask.evaluation.evaluation import PerturbationEvaluation
from vxpress.bridge.fitting import FitOptions, Stopped, TrainingError
from vxpress.tl._annotate import annotate
from vxpress.tl._cell_eval_pair import cell_eval_pair
from vxpress.tl._cluster_stability import cluster_stability
from vxpress.tl._compare import compare
from vxpress.tl._counterfactual import counterfactual
from vxpress.tl._denoise import denoise
from vxpress.tl._diagnose import diagnose
from vxpress.tl._dose_response import dose_response
from vxpress.tl._encode import encode
from vxpress.tl._evaluate_perturbation import evaluate_perturbation
from vxpress.tl._fit_prior import fit_prior
from vxpress.tl._fit_vae import fit_vae
from vxpress.tl._generate import generate
from vxpress.tl._impute import impute
from vxpress.tl._interpolate import interpolate
from vxpress.tl._log_likelihood import log_likelihood
from vxpress.tl._outliers import outliers
from vxpress.tl._perturbation_similarity import perturbation_similarity
from vxpress.tl._predict_perturbation import predict_perturbation
from vxpress.tl._predictive_check import predictive_check
from vxpress.tl._rank_genes_groups import rank_genes_groups
from vxpress.tl._sample import sample

__all__ = [
    "FitOptions",
    "PerturbationEvaluation",
    "Stopped",
    "TrainingError",
    "annotate",
    "cell_eval_pair",
    "cluster_stability",
    "compare",
    "counterfactual",
    "denoise",
    "diagnose",
    "dose_response",
    "encode",
    "evaluate_perturbation",
    "fit_prior",
    "fit_vae",
    "generate",
    "impute",
    "interpolate",
    "log_likelihood",
    "outliers",
    "perturbation_similarity",
    "predict_perturbation",
    "predictive_check",
    "rank_genes_groups",
    "sample",
]
