"""AnnData whose annotations are on disk (``anndata.experimental.read_lazy``): a public function reads them into memory first.

Matrices stay on disk: ``X``, layers, and entries of ``obsm`` and ``obsp`` above a limit.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

# a dense array in obsm, varm or uns up to this size is read
MAX_BYTES = 1_000_000_000


def read_annotations(values: Iterable[object]) -> None:
    """Read the lazy annotations of every AnnData among the arguments of a function, in place; others stay as they are."""
    anndata = sys.modules.get("anndata")
    if anndata is None:
        return
    for value in values:
        if isinstance(value, anndata.AnnData):
            _read(value)
        elif isinstance(value, (list, tuple)):
            read_annotations(value)
        elif isinstance(value, Mapping):
            read_annotations(value.values())


def is_lazy(adata: Any) -> bool:
    """Return whether annotations of an AnnData are on disk."""
    frames = [adata.obs, adata.var]
    slots = (adata.obsm, adata.varm, adata.uns)
    return any(not isinstance(frame, pd.DataFrame) for frame in frames) or any(map(_some_lazy, slots))


def _some_lazy(slot: Mapping[str, Any]) -> bool:
    return any(_some_lazy(value) if isinstance(value, dict) else _can_read(value) for value in slot.values())


def _can_read(value: Any) -> bool:
    """Return whether a value is on disk and small enough to be read."""
    if _is_dask(value):
        return bool(value.nbytes <= MAX_BYTES)
    return _is_frame(value) or _is_column(value)


def _is_dask(value: Any) -> bool:
    return hasattr(value, "dask") and hasattr(value, "compute")


def _is_frame(value: Any) -> bool:
    """Return whether this is a ``Dataset2D``, the data frame of anndata on disk."""
    return hasattr(value, "true_index_dim")


def _is_column(value: Any) -> bool:
    """Return whether this is an array of xarray on disk: categories, or values that may be missing."""
    indexing = sys.modules.get("xarray.core.indexing")
    return indexing is not None and isinstance(value, indexing.ExplicitlyIndexed)


def _read(adata: Any) -> None:
    if not is_lazy(adata):
        return
    try:
        if adata.is_view:
            _make_actual(adata)
            return
        for axis in ("obs", "var"):
            frame = getattr(adata, axis)
            if not isinstance(frame, pd.DataFrame):
                setattr(adata, axis, frame.to_memory())
        for slot, index in ((adata.obsm, adata.obs_names), (adata.varm, adata.var_names)):
            for name in list(slot):
                if _can_read(slot[name]):
                    slot[name] = in_memory(slot[name], index=index)
        if _some_lazy(adata.uns):
            adata.uns = in_memory(dict(adata.uns))
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        msg = (
            f"The annotations of the lazy AnnData cannot be read: {error}. If it was read from an open h5py.File, this file has to "
            "stay open as long as the AnnData is used; read it again if it was closed."
        )
        raise ValueError(msg) from error


def _make_actual(adata: Any) -> None:
    """Replace a view by its cells and genes, with annotations in memory; ``copy`` of a lazy view from HDF5 fails."""
    from anndata import AnnData

    warnings.warn("Received a view of an AnnData. Making a copy.", UserWarning, stacklevel=2)
    frames = {axis: getattr(adata, axis) for axis in ("obs", "var")}
    found = {axis: in_memory(frame) for axis, frame in frames.items()}
    parts = {slot: dict(getattr(adata, slot)) for slot in ("obsm", "varm", "obsp", "varp", "layers")}
    parts["layers"].pop(None, None)
    indices = {"obsm": found["obs"].index, "varm": found["var"].index}
    for slot, index in indices.items():
        parts[slot] = {name: in_memory(value, index=index) for name, value in parts[slot].items()}
    adata._init_as_actual(AnnData(X=adata.X, uns=in_memory(dict(adata.uns)), **found, **parts))


def in_memory(value: Any, *, index: pd.Index | None = None) -> Any:
    """Return a value of ``uns``, ``obsm`` or ``varm`` in memory, as ``anndata.io.read_elem`` reads it; large arrays stay on disk."""
    if isinstance(value, dict):
        return {name: in_memory(part) for name, part in value.items()}
    if _is_frame(value):
        frame = value.to_memory()
        return frame if index is None else frame.set_axis(index)
    if _is_column(value):
        from xarray.core.indexing import BasicIndexer

        found = value[BasicIndexer((slice(None),))]
        return getattr(found, "array", found)
    if _is_dask(value) and _can_read(value):
        found = value.compute()
        # strings of numpy; anndata reads objects
        return found.astype(object) if isinstance(found, np.ndarray) and found.dtype.kind == "T" else found
    return value
