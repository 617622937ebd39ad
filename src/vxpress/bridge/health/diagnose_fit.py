"""Diagnose a fit: one that was just trained, a stored one on some cells, or one whose prior was replaced."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg

from vxpress._unset import Unset
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import read_scored
from vxpress.bridge.fits.runner import Fitted, Runner
from vxpress.bridge.fits.stored_cells import StoredCells, stored_split
from vxpress.bridge.health.covariates import NAME, kept_worth, record_of, worth_of
from vxpress.bridge.health.diagnosis import OF_THE_PRIOR, Decoding, diagnose
from vxpress.core.data import Source
from vxpress.core.model import VAE


def diagnose_trained(runner: Runner, fitted: Fitted) -> dict[str, Any]:
    """Diagnose a model on the cells that it was trained on; its covariates are judged by :func:`judge_covariates`."""
    prepared = runner.prepared
    model, cells = _on_host(runner, fitted)
    held_out = np.zeros(len(cells), dtype=bool)
    held_out[prepared.validation_n] = True
    return diagnose(
        fitted.encoded,
        held_out,
        fitted.train,
        fitted.outcome.history,
        n_steps=fitted.outcome.n_steps,
        decoding=Decoding(model, cells.covariates, cells, prepared.train_n),
    )


def judge_covariates(runner: Runner, fitted: Fitted, obs: pd.DataFrame) -> dict[str, Any]:
    """Return the part of the diagnosis about the categorical covariates; ``obs`` are the columns of the cells."""
    table = runner.prepared.covariates
    if not table.categorical:
        return {}
    worth = worth_of(*_on_host(runner, fitted), runner.prepared.validation_n)
    return _recorded(record_of(table, obs, worth))


def _on_host(runner: Runner, fitted: Fitted) -> tuple[VAE, Source]:
    """Return model and cells on the processor."""
    if runner.cells.device.type == "cpu":
        return fitted.model, runner.cells
    # the counts that were read are still on the host
    return deepcopy(fitted.model).cpu(), runner.prepared.cells


def diagnose_stored(
    adata: AnnData,
    stored: StoredCells,
    layer: str | Unset | None,
    *,
    gaps: bool | None,
    n_probed: int,
    biology_keys: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Diagnose a stored fit on the cells of ``adata``; ``gaps`` is the argument of :func:`vxpress.tl.diagnose`."""
    fit, split_n = stored.fit, stored_split(adata, stored.keys)
    split_n = np.full(adata.n_obs, "", dtype=object) if split_n is None else split_n
    cells = _cells(adata, stored, layer, gaps=gaps)
    found = diagnose(
        stored.encoded,
        split_n == "validation",
        fit.params.train,
        fit.history,
        n_steps=fit.params.n_steps,
        decoding=Decoding(fit.model, stored.covariates, cells, np.flatnonzero(split_n == "train")),
        n_probed=n_probed,
        known=fit.diagnostics,
        seed=seed,
    )
    held_out_n, table = np.flatnonzero(split_n == "validation"), fit.covariates
    worth = worth_of(fit.model, cells, held_out_n, seed=seed) if cells is not None and table.categorical else {}
    found |= _recorded(record_of(table, adata.obs, worth or kept_worth(fit.diagnostics, table), biology_keys))
    # the record of a cure belongs to the fit, not to these cells
    return found | {name: fit.diagnostics[name] for name in ("cure", "before_cure") if name in fit.diagnostics}


def diagnose_new_prior(stored: StoredCells, fit: Fit, held_out: np.ndarray) -> dict[str, Any]:
    """Diagnose a stored fit with another prior; keep the values that were computed from counts, except the bounds."""
    known = {name: value for name, value in fit.diagnostics.items() if name not in OF_THE_PRIOR}
    held_out_n = np.zeros(len(stored.encoded), dtype=bool)
    held_out_n[held_out] = True
    found = diagnose(
        stored.encoded,
        held_out_n,
        fit.params.train,
        fit.history,
        n_steps=fit.params.n_steps,
        decoding=Decoding(fit.model, stored.covariates),
        known=known,
    )
    return {**known, **found}


def _recorded(covariates: dict[str, Any]) -> dict[str, Any]:
    return {NAME: covariates} if covariates else {}


def _cells(adata: AnnData, stored: StoredCells, layer: str | Unset | None, *, gaps: bool | None) -> Source | None:
    """Read the cells with their counts; None if the counts are not requested or not available."""
    if gaps is False:
        return None
    try:
        return read_scored(adata, stored.fit, layer)
    except (ValueError, KeyError) as error:
        if gaps:
            raise
        logg.info(f"    the quantities that need counts are kept from the fit: {error}")
        return None
