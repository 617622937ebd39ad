"""Select cells by a mask, positions, names, or a boolean column of ``obs``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from vxpress.bridge.read.columns import as_mask, find_column, is_mask

Cells: TypeAlias = str | slice | np.ndarray | pd.Series | pd.Index | Iterable[Any]
EXPECTED = (
    "a boolean array over cells, their positions, their names (adata.obs_names), or the name of a boolean column of "
    "adata.obs"
)


def select_cells(adata: AnnData, cells: Cells, argument: str, *, in_order: bool = False) -> np.ndarray:
    """Return the rows of the selected cells, each once, sorted or in the given order; messages call them ``argument``."""
    rows = _rows(adata, cells, argument)
    if not len(rows):
        msg = f"{argument} selects no cell; at least one is expected."
        raise ValueError(msg)
    return np.asarray(pd.unique(rows)) if in_order else np.unique(rows)


def _rows(adata: AnnData, cells: Cells, argument: str) -> np.ndarray:
    n = adata.n_obs
    if isinstance(cells, slice):
        return np.arange(n)[cells]
    if isinstance(cells, str):
        if cells not in adata.obs.columns:
            return _named(adata, [cells], argument)
        where = f"adata.obs[{cells!r}]"
        return np.flatnonzero(as_mask(find_column(adata.obs, cells), adata.obs_names, where, of="cell"))
    if not isinstance(cells, Iterable):
        msg = f"{argument}: {EXPECTED} is expected; found {type(cells).__name__}."
        raise TypeError(msg)
    cells = list(cells) if isinstance(cells, Iterator) else cells
    if is_mask(cells):
        return np.flatnonzero(as_mask(cells, adata.obs_names, argument, of="cell"))
    values = cells if isinstance(cells, (np.ndarray, pd.Series, pd.Index)) else pd.Series(list(cells), dtype=object)
    if np.ndim(values) != 1:
        msg = f"{argument} has shape {np.shape(values)}; {EXPECTED} is expected."
        raise ValueError(msg)
    column = pd.Series(values).infer_objects()
    if not len(column):
        return np.zeros(0, dtype=np.int64)
    if pd.api.types.is_integer_dtype(column.dtype) and not column.isna().any():
        rows = column.to_numpy(dtype=np.int64)
        if rows.min() < 0 or rows.max() >= n:
            msg = f"{argument} holds the position {rows.min() if rows.min() < 0 else rows.max()}; whole numbers from 0 to {n - 1} are expected."
            raise ValueError(msg)
        if len(rows) == n > 2 and rows.max() <= 1:
            msg = f"{argument} holds 0 and 1 only, one per cell. As positions these are the first two cells; if it is a mask, pass booleans: .astype(bool)."
            raise ValueError(msg)
        return rows
    if not all(isinstance(value, str) for value in column):
        msg = f"{argument} holds values such as {column.iloc[0]!r} of type {type(column.iloc[0]).__name__}; {EXPECTED} is expected."
        raise TypeError(msg)
    return _named(adata, list(column), argument)


def _named(adata: AnnData, names: list[str], argument: str) -> np.ndarray:
    if not adata.obs_names.is_unique:
        msg = "adata.obs_names are not unique, so a name does not identify one cell. Make them unique: adata.obs_names_make_unique()."
        raise ValueError(msg)
    rows = adata.obs_names.get_indexer(pd.Index(names, dtype=object))
    unknown = [name for name, row in zip(names, rows, strict=True) if row < 0]
    if unknown:
        msg = (
            f"{argument} names {unknown[:3]}, which {'is' if len(unknown) == 1 else 'are'} not in adata.obs_names (for example "
            f"{list(adata.obs_names[:2])}), nor a column of adata.obs. {EXPECTED[0].upper()}{EXPECTED[1:]} is expected."
        )
        raise KeyError(msg)
    return np.asarray(rows, dtype=np.int64)
