"""Whether the parts of a stored fit go together; each check raises ``ValueError`` that says what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vxpress.core.training import HISTORY

if TYPE_CHECKING:
    from vxpress.bridge.covariates import CovariateTable
    from vxpress.bridge.fit import Params


def check_genes(genes: np.ndarray, modelled_g: np.ndarray) -> None:
    """Names once each, and a boolean for each."""
    if modelled_g.dtype.kind != "b" or modelled_g.shape != genes.shape:
        msg = (
            f"genes['modelled'] has shape {modelled_g.shape} and type {modelled_g.dtype}; a boolean for each of the "
            f"{len(genes)} genes is expected"
        )
        raise ValueError(msg)
    if len(set(genes)) < len(genes):
        names, n = np.unique(genes.astype(str), return_counts=True)
        msg = f"genes['names'] holds a name twice ({names[n > 1].tolist()[:3]})"
        raise ValueError(msg)


def check_sizes(params: Params, covariates: CovariateTable, genes: np.ndarray, modelled_g: np.ndarray) -> None:
    """Genes and covariates are as many as the settings say, and the columns are those they name."""
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
        msg = f"genes and covariates number {found} where its settings say {expected}"
        raise ValueError(msg)
    batch = () if params.batch_key is None else (params.batch_key,)
    further = tuple(key for key in params.categorical_covariate_keys if key not in batch)
    named = (batch, (*batch, *further), params.continuous_covariate_keys, params.labels_key)
    stored = (
        () if covariates.batch_key is None else (covariates.batch_key,),
        tuple(key for key, *_ in covariates.categorical),
        tuple(key for key, *_ in covariates.continuous),
        None if covariates.labels is None else covariates.labels[0],
    )
    if named != stored or config.has_batch != bool(batch) or config.latent_library != (params.library == "latent"):
        msg = f"its covariates are {stored} where its settings name {named}, or its library is another"
        raise ValueError(msg)


def check_conditions(params: Params, prior: Mapping[str, Any]) -> None:
    """The conditions that the prior is given are on record."""
    expected = params.model.prior.n_conditions
    names = [str(name) for name in prior.get("categories", ())]
    found = len(set(names)) + bool(prior.get("unlabelled", False))
    if found != expected or len(set(names)) < len(names):
        msg = f"its prior has {expected} condition(s), of which {found} are on record"
        raise ValueError(msg)


def check_history(params: Params, history: Mapping[str, np.ndarray]) -> None:
    """A number for every epoch, in as many columns as any fit has."""
    lacking = sorted(set(HISTORY) - set(history))
    if lacking:
        msg = f"its history lacks {lacking}"
        raise ValueError(msg)
    wrong = [name for name, values in history.items() if values.ndim == 0 or values.dtype.kind not in "fiu"]
    lengths = {name: len(values) for name, values in history.items() if values.ndim}
    if wrong or len(set(lengths.values())) != 1 or params.best_epoch >= lengths["lr"]:
        msg = f"its history is not one number for each epoch, of which {params.best_epoch + 1} or more are expected (found: {wrong or lengths})"
        raise ValueError(msg)
