"""Read what sampling and scoring need in addition to the stored posterior: covariates, size factors, names of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from vxpress._keys import Keys
from vxpress._unset import Unset
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.results import check_replaceable
from vxpress.bridge.fits.stored_cells import stored_split
from vxpress.bridge.read.prepare import read_query
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells

# size factor that replaces zero: such a cell has no molecules, and none are drawn
NO_MOLECULE = 1e-30


def decoding_covariates(adata: AnnData, fit: Fit, *, warn: bool = True) -> Covariates:
    """Read the covariates of the cells; labels only if the dispersion depends on them."""
    return fit.covariates.read(adata.obs, labels=fit.params.model.dispersion == "gene-label", warn=warn)


def log_library_of(library_n: np.ndarray) -> torch.Tensor:
    """Compute log size factors, (n, 1) float32, for the count distribution of cells."""
    return torch.from_numpy(np.log(np.maximum(library_n, NO_MOLECULE)).astype(np.float32))[:, None]


def read_scored(adata: AnnData, fit: Fit, layer: str | Unset | None) -> Cells:
    """Read cells with counts, in the gene order of the fit, for their count distribution."""
    cells, library_n = read_query(adata, fit, layer)
    cells = replace(cells, covariates=decoding_covariates(adata, fit, warn=False))
    # a latent library is sampled and needs no size factor
    return cells if fit.params.model.latent_library else replace(cells, log_library_n1=log_library_of(library_n))


def check_own(adata: AnnData, record: str, **slots: list[str]) -> None:
    """Raise if a slot is taken, unless ``uns[record]`` shows that an earlier call of the same kind wrote it."""

    def ours(stored: Mapping[str, Any]) -> bool:
        # entries that params_of always writes; scanpy's own records have params too
        params = stored.get("params")
        return isinstance(params, Mapping) and {"key", "likelihood"} <= set(params) and "format" not in stored

    check_replaceable(adata, record, ours=ours, **slots)  # type: ignore[arg-type]  # of lists


def split_of(adata: AnnData, keys: Keys, *, own_fit: bool) -> np.ndarray | None:
    """Return the split that the fit wrote; None if ``obs`` does not hold the split of this fit."""
    return stored_split(adata, keys) if own_fit else None


def params_of(fit: Fit, key: str, **settings: Any) -> dict[str, Any]:
    """Return the record of a call for ``uns``, without entries that are None."""
    record = {"key": key, "likelihood": fit.params.model.likelihood, **settings}
    return {name: value for name, value in record.items() if value is not None}
