"""Find the two ends of a path: groups of cells, or single cells."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from vxpress._names import each_value, find_name
from vxpress.bridge.read.columns import as_mask, get_categories, is_mask

Endpoint: TypeAlias = Hashable | Sequence[str] | np.ndarray


def endpoint_rows(adata: AnnData, end: Endpoint, groupby: str | None, argument: str) -> np.ndarray:
    """Return the rows of the cells whose mean is an end: a group of ``obs[groupby]``, named cells, or a boolean array."""
    if groupby is not None:
        return _group(adata, end, groupby, argument)
    if is_mask(end):
        rows = np.flatnonzero(as_mask(end, adata.obs_names, f"{argument}=", of="cell"))
    else:
        if not adata.obs_names.is_unique:
            msg = "adata.obs_names are not unique, so a name does not identify one cell. Make them unique: adata.obs_names_make_unique()."
            raise ValueError(msg)
        names = pd.Index([str(name) for name in each_value(end)], dtype=object)
        rows = adata.obs_names.get_indexer(names)
        if (rows < 0).any():
            msg = (
                f"{argument}= names {list(names[rows < 0][:3])}, which are not in adata.obs_names (for example "
                f"{list(adata.obs_names[:2])}). If it is a group, name its column with groupby=."
            )
            raise KeyError(msg)
    if not len(rows):
        msg = f"{argument}= selects no cell; at least one is expected."
        raise ValueError(msg)
    return np.unique(rows)


def endpoint_name(adata: AnnData, groupby: str | None, rows: np.ndarray) -> str:
    """Return the name of an end in records and figures."""
    if groupby is not None:
        found = get_categories(adata.obs, groupby, argument="groupby", gaps=True)
        return found.names[found.code_n[rows[0]]]
    return str(adata.obs_names[rows[0]]) if len(rows) == 1 else f"{len(rows)} cells"


def _group(adata: AnnData, end: Endpoint, groupby: str, argument: str) -> np.ndarray:
    found = get_categories(adata.obs, groupby, argument="groupby", gaps=True)
    if not isinstance(end, Hashable):
        msg = f"{argument}={end!r} should name one group of obs[{groupby!r}]. To choose cells, omit groupby=."
        raise TypeError(msg)
    name = find_name(end, found.names)
    if name is None:
        msg = f"{argument}={end!r} is not a group of obs[{groupby!r}] with cells; the groups are {list(found.names[:20])}."
        raise ValueError(msg)
    return np.flatnonzero(found.code_n == found.names.index(name))
