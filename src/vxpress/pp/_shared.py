"""Batches of cells, for functions that treat each batch separately."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from vxpress.bridge.read.columns import get_categories


def batch_codes(adata: AnnData, batch_key: str | None) -> tuple[NDArray[np.intp], list[str]]:
    """Return the batch index of each cell and the names of the batches; without a key, a single batch ``"all"``."""
    if batch_key is None:
        return np.zeros(adata.n_obs, dtype=np.intp), ["all"]
    found = get_categories(adata.obs, batch_key, argument="batch_key")
    return found.code_n.astype(np.intp), list(found.names)
