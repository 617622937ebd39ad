"""What sampling and scoring need beyond the stored posterior: covariates of the distribution, size factors, names of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from vxpress._keys import Keys
from vxpress._unset import Unset
from vxpress.bridge.fit import Fit
from vxpress.bridge.prepare import read_query
from vxpress.bridge.store import check_replaceable
from vxpress.bridge.stored import stored_split
from vxpress.core.counts import Cells
from vxpress.core.covariates import Covariates

# a cell with a size factor of zero holds no molecule, and draws none
NO_MOLECULE = 1e-30


def decoding_covariates(adata: AnnData, fit: Fit, *, warn: bool = True) -> Covariates:
    """Covariates of the cells; labels only where the dispersion hangs on them."""
    return fit.covariates.read(adata.obs, labels=fit.params.model.dispersion == "gene-label", warn=warn)


def log_library_of(library_n: np.ndarray) -> torch.Tensor:
    """Log size factors, (n, 1) float32, of cells whose count distribution is asked for."""
    return torch.from_numpy(np.log(np.maximum(library_n, NO_MOLECULE)).astype(np.float32))[:, None]


def read_scored(adata: AnnData, fit: Fit, layer: str | Unset | None) -> Cells:
    """Cells with counts, put in the order of the fit, whose count distribution is asked for."""
    cells, library_n = read_query(adata, fit, layer)
    cells = replace(cells, covariates=decoding_covariates(adata, fit, warn=False))
    # a latent library is drawn and needs no size factor
    return cells if fit.params.model.latent_library else replace(cells, log_library_n1=log_library_of(library_n))


def check_own(adata: AnnData, record: str, **slots: list[str]) -> None:
    """Raise if a slot is taken, unless ``uns[record]`` says that an earlier call of the same kind wrote it."""

    def ours(stored: Mapping[str, Any]) -> bool:
        # what params_of always writes: scanpy's own records have params too
        params = stored.get("params")
        return isinstance(params, Mapping) and {"key", "likelihood"} <= set(params) and "format" not in stored

    check_replaceable(adata, record, ours=ours, **slots)  # type: ignore[arg-type]  # of lists


def split_of(adata: AnnData, keys: Keys, *, own_fit: bool) -> np.ndarray | None:
    """Which cells the fit trained on, as it wrote them; None where ``obs`` says nothing of this fit."""
    return stored_split(adata, keys) if own_fit else None


def params_of(fit: Fit, key: str, **settings: Any) -> dict[str, Any]:
    """The record of a call that goes into ``uns``; what is None is left out."""
    record = {"key": key, "likelihood": fit.params.model.likelihood, **settings}
    return {name: value for name, value in record.items() if value is not None}
