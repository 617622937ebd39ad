"""Metrics of latent variable models from the literature, as pure functions on arrays."""

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
from vxpress.metrics._prior_gap import prior_gap

__all__ = [
    "active_units",
    "energy_distance",
    "fold_change_slope",
    "kl_per_cell",
    "kl_per_dimension",
    "log_aggregate_posterior",
    "memorization",
    "mixing_lisi",
    "mutual_information",
    "prior_gap",
    "two_sample_auroc",
]
