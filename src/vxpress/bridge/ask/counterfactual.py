"""Decode cells as if one covariate had another value, and say how far their neighbours support it."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pandas as pd
from scanpy import logging as logg

from vxpress.bridge.ask.decoded import DecodingRequest, Matrix, decode
from vxpress.bridge.ask.intervention import Intervention
from vxpress.bridge.ask.relabelling import Relabelling
from vxpress.bridge.fits.stored_cells import StoredCells
from vxpress.bridge.read.covariates import Batches
from vxpress.bridge.read.perturbations import Condition
from vxpress.core.inference.support import local_support, neighborhood_size

LOW_SUPPORT = 0.2
# the value of a covariate, or the label
Change: TypeAlias = Intervention | Relabelling


def find_change(cells: StoredCells, obs: pd.DataFrame, key: str, value: Condition) -> Change:
    """Return the change of a covariate of the fit or, if it is none, of its labels."""
    table, labels = cells.fit.covariates, cells.fit.labels
    perturbed = [] if table.perturbations is None else [table.perturbations.key]
    known = [*(name for name, _ in (*table.categorical, *table.continuous)), *perturbed]
    if labels is not None and key == labels.key and key not in known:
        return Relabelling.find(labels, cells.encoded, obs, value)
    return Intervention.find(table, key, value)


def decode_changed(
    cells: StoredCells, change: Change, request: DecodingRequest, n_neighbors: int | None
) -> tuple[Matrix, np.ndarray, int]:
    """Return expression after the change, the support of every cell, and the number of neighbours that gave it."""
    weight_n = change.weights(cells.covariates)
    n_neighbors = neighborhood_size(weight_n) if n_neighbors is None else n_neighbors
    support_n = local_support(cells.encoded.mean_nd, weight_n, n_neighbors)
    _warn_unsupported(change, weight_n, support_n)
    fit, changed = cells.fit, change.apply(cells.covariates)
    moved = change.move(cells.encoded)
    matrix = decode(fit.model, moved, changed, modelled_g=fit.modelled_g, request=request)[0]
    return matrix, support_n, n_neighbors


def batches_of(cells: StoredCells, change: Change, transform_batch: Batches | None) -> tuple[int | None, ...]:
    """Return the batches to decode under; with a change of the batch itself there is only that one."""
    table = cells.fit.covariates
    if change.key != table.batch_key:
        return cells.decoding_batches(transform_batch)
    if transform_batch is not None:
        msg = (
            f"transform_batch={transform_batch!r} was given while the batch itself, {change.key!r}, is set to "
            f"{change.value!r}. Leave it out."
        )
        raise ValueError(msg)
    return (None,)


def check_not_kept(cells: StoredCells, change: Change) -> None:
    """Raise if the covariate to change is hidden from the model."""
    if change.key in cells.kept:
        msg = (
            f"key_covariate={change.key!r} is an optional covariate, whose effect keep=True leaves in the latent state, so that it "
            "cannot be changed. Leave keep= out."
        )
        raise ValueError(msg)


def _warn_unsupported(change: Change, weight_n: np.ndarray, support_n: np.ndarray) -> None:
    what = f"{change.key} = {change.value}"
    if weight_n.sum() < 1:
        logg.warning(
            f"No cell of adata is at or near {what}, so no cell has support for it. Support is computed from the cells of "
            "adata: include the cells of the condition, or treat the result as extrapolation."
        )
        return
    others = weight_n < 1 if change.categorical else np.ones(len(weight_n), dtype=bool)
    low = int((support_n[others] < LOW_SUPPORT).sum())
    if low:
        logg.warning(
            f"{low} of {int(others.sum())} cells{' of other conditions' if change.categorical else ''} have a support below "
            f"{LOW_SUPPORT:g} for {what}: among their neighbours this value is less than a fifth as common as overall, so their "
            "decoded expression is extrapolation. The score of every cell is in adata.obs."
        )
