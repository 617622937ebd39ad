"""Batches of the cells, for functions that treat each on its own."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray


def batch_codes(adata: AnnData, batch_key: str | None) -> tuple[NDArray[np.intp], list[str]]:
    """Batch index of each cell and the names of the batches; a single batch ``"all"`` without a key."""
    if batch_key is None:
        return np.zeros(adata.n_obs, dtype=np.intp), ["all"]
    found = list(adata.obs.columns)
    if batch_key not in found:
        msg = f"batch_key={batch_key!r} is not in adata.obs (found: {found or 'none'}). Pass batch_key=None for one batch."
        raise KeyError(msg)
    column = adata.obs[batch_key]
    values = pd.Categorical(column if isinstance(column, pd.Series) else np.asarray(column)).remove_unused_categories()
    codes = np.asarray(values.codes, dtype=np.intp)
    n_missing = int((codes < 0).sum())
    if n_missing:
        msg = (
            f"adata.obs[{batch_key!r}] is missing (NaN) for {n_missing} of {adata.n_obs} cells; every cell needs a "
            f"batch. Remove them with adata[adata.obs[{batch_key!r}].notna()].copy(), or name their batch."
        )
        raise ValueError(msg)
    return codes, [str(name) for name in values.categories]
