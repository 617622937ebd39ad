"""The stored arrays behind a matrix, and whether all of their chunks are there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from anndata.abc import CSCDataset, CSRDataset

from vxpress.bridge.read.opened import open_root, store_of

# how deep functions of a dask graph are looked into for what they read
DEPTH = 6


def stored_behind(matrix: Any) -> list[Any]:
    """Return what a matrix is read from: ``CSRDataset``, ``CSCDataset``, arrays of zarr and h5py, and paths of ``.h5ad`` files.

    A dask array made by :func:`anndata.experimental.read_lazy` names it in the functions of its graph, of which nothing is computed.
    """
    if not hasattr(matrix, "dask"):
        return [matrix] if _is_stored(matrix) else []
    parts = store_of(matrix)
    if parts is not None:
        return [part.matrix for part in parts]
    found: dict[int, Any] = {}
    for layer in matrix.dask.layers.values():
        # all tasks of a layer call the same function
        task = getattr(layer, "task", None) or getattr(layer, "dsk", None) or next(iter(layer.values()), None)
        # and those that it gives as arguments of it are apart
        found |= {id(item): item for item in _within((task, getattr(layer, "indices", ())), DEPTH)}
    return list(found.values())


def path_of(stored: Any) -> Path | None:
    """Return the file or folder of such an object; None if it is not on this machine's disks."""
    if isinstance(stored, Path):
        return stored.resolve()
    element = stored.group if isinstance(stored, (CSRDataset, CSCDataset)) else stored
    if type(element).__module__.startswith("h5py."):
        return Path(element.file.filename).resolve() if element else None
    root = getattr(getattr(element, "store", None), "root", None)
    return None if root is None else Path(root).resolve()


def check_complete(matrix: Any, where: str) -> None:
    """Raise if a matrix of a zarr store was removed or replaced by one of another shape, or lacks chunks, which zarr reads as zeros.

    Chunks of a dense array may be absent: zarr does not store those that are all zeros.
    """
    for stored in stored_behind(matrix):
        _check_there(stored, where)
        if isinstance(stored, (CSRDataset, CSCDataset)):
            _check_chunks(stored, where)


def _check_there(stored: Any, where: str) -> None:
    element = stored.group if isinstance(stored, (CSRDataset, CSCDataset)) else stored
    path = path_of(stored)
    # an open HDF5 file can be read even if its name is gone
    if path is None or not type(element).__module__.startswith("zarr."):
        return
    try:
        now = open_root(path)[element.path]
        shape = tuple(now.shape if hasattr(now, "shape") else now.attrs["shape"])
    except (KeyError, FileNotFoundError):
        msg = (
            f"{where} is read from {element.path!r} in {path}, which does not exist any more. Put the store back, or open the counts where "
            "they are now: adata = vx.io.open_store(path)."
        )
        raise FileNotFoundError(msg) from None
    if shape != tuple(stored.shape):
        msg = (
            f"{where} is read from {element.path!r} in {path}, which was {' x '.join(map(str, stored.shape))} when it was opened and is "
            f"{' x '.join(map(str, shape))} now. Open it again: adata = vx.io.open_store(path)."
        )
        raise ValueError(msg)


def _check_chunks(stored: CSRDataset | CSCDataset, where: str) -> None:
    # of a matrix with one gene or cell, all indices may be zero, and their chunks absent
    if min(stored.shape) <= 1:
        return
    for name in ("indices", "data"):
        array: Any = stored.group[name]
        n_chunks = math.prod(-(-n // chunk) for n, chunk in zip(array.shape, array.chunks or array.shape, strict=True))
        n_stored = getattr(array, "nchunks_initialized", n_chunks)
        if n_stored < n_chunks:
            msg = (
                f"{where} is damaged: its array {name!r} has {n_stored} of {n_chunks} chunks. Copy the store again, or write it again "
                "from its source."
            )
            raise ValueError(msg)


def _is_stored(value: Any) -> bool:
    return isinstance(value, (CSRDataset, CSCDataset, Path)) or (
        type(value).__module__.split(".")[0] in ("zarr", "h5py") and hasattr(value, "shape")
    )


def _within(value: Any, depth: int) -> Iterator[Any]:
    """Yield the stored arrays among a value, the arguments of a function or task, and the items of containers."""
    if _is_stored(value):
        yield value
    elif depth and isinstance(value, partial):
        yield from _within((value.func, value.args, value.keywords), depth)
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _within(item, depth - 1)
    elif depth and isinstance(value, (tuple, list)):
        for item in value:
            yield from _within(item, depth - 1)
    elif depth and type(value).__module__.startswith("dask."):
        for name in ("func", "args", "kwargs", "value", "array"):
            if hasattr(value, name):
                yield from _within(getattr(value, name), depth - 1)
