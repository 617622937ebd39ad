"""Impute the counts of a modality of a joint fit for all cells of an AnnData or a MuData."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress._keys import Keys
from vxpress._mudata import is_mudata
from vxpress._similar import similar_names
from vxpress._unset import Unset
from vxpress.bridge.fits.find_fit import Model
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import read_query
from vxpress.bridge.fits.stored_cells import stored_split
from vxpress.bridge.read.joint import as_anndata, joint_of
from vxpress.bridge.read.modalities import core_name
from vxpress.core.config import RNA
from vxpress.core.data import Joined
from vxpress.core.inference.imputation import Ends, Imputed, Plan, calibrate, impute, least_cells
from vxpress.core.inference.posterior import encode


@dataclass(frozen=True)
class Imputation:
    """Imputed counts of all cells, the features, and on how many held-out cells the intervals were calibrated."""

    found: Imputed
    features: np.ndarray
    n_calibrated: int

    def tables(self, names: pd.Index) -> tuple[pd.DataFrame, ...]:
        """Return expected counts, expected log1p counts, and the lower and upper ends of the intervals."""
        found = self.found
        parts = found.mean_nf, found.log1p_nf, found.lower_nf, found.upper_nf
        return tuple(pd.DataFrame(part, index=names, columns=self.features.astype(str)) for part in parts)


def modality_in(fit: Fit, modality: str) -> str:
    """Return the name in the model of a modality; raises ``KeyError`` if the fit does not have it."""
    names = list(fit.params.modalities)
    if not names:
        msg = "The fit is one of a single modality, from which no other can be imputed. Fit several: vx.tl.fit_vae(mdata)."
        raise ValueError(msg)
    if modality not in names:
        msg = (
            f"modality={modality!r} is not one of the modalities of the fit, {names}.{similar_names([modality], names)}"
        )
        raise KeyError(msg)
    return RNA if modality == names[0] else core_name(modality)


def impute_cells(
    adata: AnnData,
    fit: Fit,
    model: Model,
    keys: Keys,
    name: str,
    *,
    layer: str | Unset | None,
    interval: float,
    n_draws: int,
    seed: int,
) -> Imputation:
    """Impute a modality, named as in the model, with intervals calibrated on the held-out cells of the fit."""
    query = read_query(adata, fit, layer, incomplete=True)
    cells = query.cells
    assert isinstance(cells, Joined)  # noqa: S101 - the fit is joint
    extended = query.fit
    reference = _reference(adata, fit, model, keys)
    if reference is None:
        having = cells.having(name, torch.arange(len(cells)))
        if not len(having) and extended.model.of(name).decoder.output.scalable:
            msg = (
                "The size factors of the imputed counts are not known, because none of these cells has the modality and the "
                "fit comes from a file. Pass the MuData of the fit: model=mdata."
            )
            raise ValueError(msg)
        plan = _plan_of_record(extended, cells, name, n_draws, seed)
        ends, n_held_out = Ends.of_model(interval, n_draws, extended.model.of(name).config.n_genes), 0
    else:
        known, split_n = reference
        fitted = torch.from_numpy(np.flatnonzero(split_n == "train"))
        held_out = torch.from_numpy(np.flatnonzero(split_n == "validation"))
        plan = Plan.of(fit.model, known, name, fitted, n=n_draws, seed=seed)
        ends = calibrate(fit.model, known, name, held_out, plan, share=interval)
        n_held_out = len(known.having(name, held_out)) if ends.calibrated else 0
    if not ends.calibrated:
        logg.warning(
            f"The intervals are those of the model, not calibrated: {least_cells(interval)} or more held-out cells of the fit with the "
            "modality are needed. Pass the MuData of the fit with model=, or choose a smaller interval=."
        )
    encoded = encode(extended.model, cells.without(name))
    found = impute(extended.model, cells, encoded, name, plan, ends)
    features = fit.genes[fit.modelled_g] if name == RNA else fit.features[name]
    return Imputation(found, features, n_held_out)


def _reference(adata: AnnData, fit: Fit, model: Model, keys: Keys) -> tuple[Joined, np.ndarray] | None:
    """Return the cells of the fit and their split; None if they are not at hand."""
    where: Any = adata if model is None else model
    if is_mudata(where):
        where = as_anndata(where, fit.params.modalities, fit.params.modalities[0], fit.genes, fit.params.library)
    if not isinstance(where, AnnData) or joint_of(where) is None:
        return None
    split_n = stored_split(where, keys)
    if split_n is None or not (split_n == "train").any():
        return None
    cells = read_query(where, fit, fit.params.layer).cells
    assert isinstance(cells, Joined)  # noqa: S101 - the fit is joint
    return cells, split_n


def _plan_of_record(fit: Fit, cells: Joined, name: str, n_draws: int, seed: int) -> Plan:
    """Return the plan from the batches that the fit recorded and the size factors of the cells that have the modality."""
    having = cells.having(name, torch.arange(len(cells)))
    source = cells if name == RNA else cells.further[name]
    log_library_m = source.log_library_n1[having, 0] if len(having) else torch.zeros(1)
    view = fit if name == RNA else fit.of(name)
    return Plan(n_draws, list(view.covariates.averaged_batches), log_library_m, seed)
