"""Metrics of latent variable models from the literature, as pure functions on arrays."""

from vxpress.metrics._annotation import expected_calibration_error
from vxpress.metrics._generation import (
    energy_distance,
    fold_change_slope,
    memorization,
    mixing_lisi,
    two_sample_auroc,
)
from vxpress.metrics._latent import (
    active_units,
    kl_per_cell,
    kl_per_dimension,
    log_aggregate_posterior,
    mutual_information,
)
from vxpress.metrics._perturbation import (
    change_scores,
    de_weights,
    deg_overlap,
    log1p_normalized,
    mmd,
    rank_discrimination,
    welch_t,
)
from vxpress.metrics._prior_gap import prior_gap

__all__ = [
    "active_units",
    "change_scores",
    "de_weights",
    "deg_overlap",
    "energy_distance",
    "expected_calibration_error",
    "fold_change_slope",
    "kl_per_cell",
    "kl_per_dimension",
    "log1p_normalized",
    "log_aggregate_posterior",
    "memorization",
    "mixing_lisi",
    "mmd",
    "mutual_information",
    "prior_gap",
    "rank_discrimination",
    "two_sample_auroc",
    "welch_t",
]
