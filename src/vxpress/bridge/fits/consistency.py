"""Check that the parts of a stored fit are consistent; each check raises a ``ValueError`` that names the mismatch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vxpress.bridge.fits.params import Params
from vxpress.bridge.read.covariates import CovariateTable
from vxpress.bridge.read.modalities import core_name
from vxpress.core.training import HISTORY


def check_genes(genes: np.ndarray, modelled_g: np.ndarray) -> None:
    """Check that gene names are unique and that each has a boolean."""
    if modelled_g.dtype.kind != "b" or modelled_g.shape != genes.shape:
        msg = (
            f"genes['modelled'] has shape {modelled_g.shape} and type {modelled_g.dtype}; one boolean for each of the "
            f"{len(genes)} genes is expected"
        )
        raise ValueError(msg)
    if len(set(genes)) < len(genes):
        names, n = np.unique(genes.astype(str), return_counts=True)
        msg = f"genes['names'] holds repeated names ({names[n > 1].tolist()[:3]})"
        raise ValueError(msg)


def check_sizes(params: Params, covariates: CovariateTable, genes: np.ndarray, modelled_g: np.ndarray) -> None:
    """Check the numbers of genes and covariates, and the names of the columns, against the settings."""
    config = params.model
    found = (
        len(genes),
        int(modelled_g.sum()),
        tuple(len(names) for _, names in covariates.categorical),
        len(covariates.continuous),
        0 if covariates.labels is None else len(covariates.labels[1]),
    )
    expected = (len(modelled_g), config.n_genes, config.n_categories, config.n_continuous, config.n_labels)
    if found != expected:
        msg = f"the numbers of genes and covariates are {found}, but its settings give {expected}"
        raise ValueError(msg)
    batch = () if params.batch_key is None else (params.batch_key,)
    named_as_categorical = (*params.categorical_covariate_keys, *params.optional_covariate_keys)
    further = tuple(dict.fromkeys(key for key in named_as_categorical if key not in batch))
    named = (batch, (*batch, *further), params.continuous_covariate_keys, params.dispersion_labels_key)
    stored = (
        () if covariates.batch_key is None else (covariates.batch_key,),
        tuple(key for key, *_ in covariates.categorical),
        tuple(key for key, *_ in covariates.continuous),
        None if covariates.labels is None else covariates.labels[0],
    )
    table = covariates.perturbations
    named_of = (params.perturbation_key, params.dose_key, config.n_perturbations, config.dose_response)
    found_of = (None, None, 0, False) if table is None else (table.key, table.dose_key, len(table.names), table.differ)
    if named_of != found_of:
        msg = f"its perturbations are {found_of}, but its settings name {named_of}"
        raise ValueError(msg)
    panels = covariates.panels
    key, shape = (None, (0, config.n_genes)) if panels is None else (panels.key, panels.measured_pg.shape)
    if (key, shape) != (params.panel_key, (config.n_panels, config.n_genes)):
        msg = f"its panels are those of {key!r}, {shape}, but its settings name {params.panel_key!r} and {config.n_panels}"
        raise ValueError(msg)
    if panels is not None and config.n_readout not in (0, panels.outside_pg.shape[1]):
        msg = f"its panels have {panels.outside_pg.shape[1]} genes outside the model, but its readout has {config.n_readout}"
        raise ValueError(msg)
    optional = tuple(covariates.categorical[k][0] for k in config.optional)
    if set(optional) != set(params.optional_covariate_keys):
        msg = f"its optional covariates are {optional}, but its settings name {params.optional_covariate_keys}"
        raise ValueError(msg)
    if named != stored or config.has_batch != bool(batch) or config.latent_library != (params.library == "latent"):
        msg = f"its covariates are {stored}, but its settings name {named}, or its library does not match"
        raise ValueError(msg)


def check_features(params: Params, features: Mapping[str, np.ndarray], measured: Mapping[str, np.ndarray]) -> None:
    """Check the features of the modalities other than RNA against the settings."""
    expected = {modality.name: modality.n_features for modality in params.model.modalities}
    found = {name: len(names) for name, names in features.items()}
    cores = [core_name(name) for name in params.modalities[1:]]
    if found != expected or cores != list(expected):
        msg = f"its modalities are {found} with the names {list(params.modalities)}, but its settings give {expected}"
        raise ValueError(msg)
    repeated = [name for name, names in features.items() if len(set(names)) < len(names)]
    if repeated:
        msg = f"features[{repeated[0]!r}] holds repeated names"
        raise ValueError(msg)
    wrong = [name for name, n in measured.items() if n.ndim != 1 or (n < 0).any() or len(n) > params.model.n_batches]
    if wrong or not set(measured) <= set(features):
        msg = f"measured= holds {sorted(measured)}, and numbers of cells of each batch for {sorted(features)} are expected"
        raise ValueError(msg)


def check_conditions(params: Params, prior: Mapping[str, Any]) -> None:
    """Check that all conditions of the prior are recorded."""
    expected = params.model.prior.n_conditions
    names = [str(name) for name in prior.get("categories", ())]
    found = len(set(names)) + bool(prior.get("unlabelled", False))
    if found != expected or len(set(names)) < len(names):
        msg = f"its prior has {expected} condition(s), but {found} are recorded"
        raise ValueError(msg)


def check_history(params: Params, history: Mapping[str, np.ndarray]) -> None:
    """Check that the history has all columns, each with one number per epoch."""
    lacking = sorted(set(HISTORY) - set(history))
    if lacking:
        msg = f"its history lacks {lacking}"
        raise ValueError(msg)
    wrong = [name for name, values in history.items() if values.ndim == 0 or values.dtype.kind not in "fiu"]
    lengths = {name: len(values) for name, values in history.items() if values.ndim}
    if wrong or len(set(lengths.values())) != 1 or params.best_epoch >= lengths["lr"]:
        msg = f"its history does not hold one number per epoch for {params.best_epoch + 1} or more epochs (found: {wrong or lengths})"
        raise ValueError(msg)
