"""Find the training cells of a fit and their positions in its latent space, in an AnnData or a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem

from vxpress._keys import Keys
from vxpress._stores import open_store
from vxpress.bridge.fits.find_fit import Model
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.open_files import SUFFIX
from vxpress.bridge.fits.results import is_fit
from vxpress.bridge.fits.stored_cells import stored_split
from vxpress.bridge.fits.weights import stored_weights
from vxpress.bridge.read.columns import get_array

FITTED = ("train", "validation")
# fewest cells to learn a prior from, and to judge it on
MIN_TRAIN, MIN_VALIDATION = 20, 5
REWRITE = "Write it again: vx.tl.encode(adata)."


def fitted_cells(adata: AnnData, fit: Fit, keys: Keys) -> np.ndarray:
    """Return which cells the fit used for training or early stopping, boolean (n,); none if unknown.

    If ``adata`` holds another fit under the same name, the split belongs to that fit, so it is unknown.
    """
    stored = adata.uns.get(keys.uns)
    split_n = stored_split(adata, keys)
    if split_n is None or (is_fit(stored) and not _same(stored, fit)):
        return np.zeros(adata.n_obs, dtype=bool)
    return np.asarray(pd.Series(split_n).isin(FITTED), dtype=bool)


def learning_split(adata: AnnData, keys: Keys) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the cells to learn a prior from and to judge it on: training and validation cells.

    If the fit held no cells out, a tenth of the training cells is used to judge.
    """
    split = stored_split(adata, keys)
    if split is None:
        msg = (
            f"adata.obs lacks {keys.split!r}: a prior is learned from the cells of the fit, and it is unknown whether these are. "
            "Pass the AnnData that vx.tl.fit_vae was called on."
        )
        raise KeyError(msg)
    train_n, validation_n = (np.flatnonzero(split == part) for part in FITTED)
    if len(validation_n) == 0:
        order = np.random.default_rng(0).permutation(train_n)
        n_held_out = len(train_n) // 10
        train_n, validation_n = np.sort(order[n_held_out:]), np.sort(order[:n_held_out])
    if len(train_n) < MIN_TRAIN or len(validation_n) < MIN_VALIDATION:
        msg = (
            f"adata has {len(train_n)} training and {len(validation_n)} validation cell(s); at least {MIN_TRAIN} and "
            f"{MIN_VALIDATION} are needed to learn a prior and to judge it. Pass all cells of the fit."
        )
        raise ValueError(msg)
    return train_n, validation_n


def _same(stored: Mapping[str, Any], fit: Fit) -> bool:
    """Return whether a stored fit has the same weights as this one."""
    found, expected = stored.get("weights", {}), stored_weights(fit.model)
    return set(map(str, found)) == set(expected) and all(
        np.array_equal(np.asarray(value), expected[str(name)]) for name, value in found.items()
    )


def training_latent(adata: AnnData, model: Model, fit: Fit, keys: Keys) -> tuple[np.ndarray, np.ndarray]:
    """Return the posterior means of the training cells and of the validation cells, each float32 (m, d)."""
    where = adata if model is None else model
    stored = _of_file(Path(where), keys) if isinstance(where, (str, Path)) else _of_adata(where, keys)
    if stored is None or not (stored[1] == "train").any():
        place = "adata" if model is None else "model"
        msg = (
            f"{place} holds no training cells with their posterior (obs[{keys.split!r}] == 'train' and obsm[{keys.latent!r}]), "
            "which the latent distance refers to. Pass the AnnData that was fitted, or its .h5ad file: "
            "vx.tl.outliers(query, reference, calibration=calibration)."
        )
        raise KeyError(msg)
    mean_nd, split_n = stored
    if mean_nd.shape != (len(split_n), fit.params.model.n_latent) or not np.isfinite(mean_nd).all():
        msg = f"obsm[{keys.latent!r}] has shape {mean_nd.shape} or holds NaN: it belongs to another fit. {REWRITE}"
        raise ValueError(msg)
    return mean_nd[split_n == "train"], mean_nd[split_n == "validation"]


def _of_adata(adata: AnnData, keys: Keys) -> tuple[np.ndarray, np.ndarray] | None:
    split_n = stored_split(adata, keys)
    if split_n is None or keys.latent not in adata.obsm:
        return None
    return get_array(adata.obsm, keys.latent, REWRITE), split_n


def _of_file(path: Path, keys: Keys) -> tuple[np.ndarray, np.ndarray] | None:
    """Read the same from a stored AnnData, and nothing else; None for a file of weights, which holds no cells."""
    if path.suffix == SUFFIX:
        return None
    with open_store(path) as root:
        return _of_group(root, keys)


def _of_group(group: Any, keys: Keys) -> tuple[np.ndarray, np.ndarray] | None:
    if keys.latent not in group["obsm"] or keys.split not in group["obs"]:
        return None
    split = np.asarray(read_elem(group["obs"][keys.split]), dtype=object)
    obsm = {keys.latent: read_elem(group["obsm"][keys.latent])}
    return get_array(obsm, keys.latent, REWRITE), split
