"""Where results are written: into the store of an AnnData, or to a new one; and large ones at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from anndata import AnnData
from numpy.typing import DTypeLike
from scanpy import logging as logg

from vxpress.bridge.fits.store_writing import write_store
from vxpress.bridge.read.complete import path_of, stored_behind
from vxpress.bridge.read.matrix import matrix_name
from vxpress.bridge.read.opened import Store, entry_on_disk, on_disk, opened_from, size_of_store
from vxpress.core.data.rows import rows_array

SUFFIXES = (".h5ad", ".zarr")
# results above this size are written to the store at once
LARGE_RESULT = 1_000_000_000


def save(adata: AnnData, path: Path | None, *, overwrite: bool = False) -> Path:
    """Write ``adata`` to ``path``, or with None into the store that it was opened from; returns the path.

    Under torchrun all processes have the same results, and the first one writes them.
    """
    store = opened_from(adata)
    if path is not None:
        _check_not_read(adata, path, store)
    if not _is_first_process():
        return _writable(store).path if path is None else path
    if path is None:
        target = _writable(store).path
        overwrite = True
    else:
        target = path
        _check_path(path, overwrite=overwrite)
    if store is not None:
        _check_cells(adata, store)
    write_store(adata, target, store, check=lambda: _check_free(target, overwrite=overwrite))
    if adata.isbacked and store is not None and target.resolve() == store.path:
        # the open file is the old one
        adata.file.close()
        adata.file.open()
    return target


def array_for(adata: AnnData) -> Callable[[tuple[int, int], DTypeLike], np.ndarray]:
    """Return the function that makes a matrix of results of every cell: in memory, or for data on disk in a temporary file.

    With ``mode="r+"`` this file is next to the store, which has to hold it later.
    """
    store = opened_from(adata)
    in_memory = store is None and not on_disk(adata.X)
    folder = store.path.parent if store is not None and store.mode == "r+" else None
    return lambda shape, dtype: rows_array(*shape, dtype, in_memory=in_memory, folder=folder)


def store_large(adata: AnnData, names: Iterable[tuple[str, str]]) -> None:
    """Write a store opened with ``mode="r+"`` if one of these slots and names is too large for memory; it is then read from there."""
    store = opened_from(adata)
    large = [(slot, name) for slot, name in names if _is_large(getattr(adata, slot).get(name))]
    # several processes would write the same store; the files are theirs
    if store is None or store.mode == "r" or not large or os.environ.get("WORLD_SIZE", "1") != "1":
        return
    logg.info(
        f"    writing {', '.join(f'{slot}[{name!r}]' for slot, name in large)} and all other results to {store.path}"
    )
    save(adata, None)
    for slot, name in large:
        getattr(adata, slot)[name] = entry_on_disk(store, f"{slot}/{name}")


def _is_large(value: object) -> bool:
    return isinstance(value, np.memmap) and value.nbytes > LARGE_RESULT


def _is_first_process() -> bool:
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _writable(store: Store | None) -> Store:
    if store is None:
        msg = "adata was not opened from a store (or is a part or a copy of one that was). Name a file: path='results.h5ad'."
        raise ValueError(msg)
    if store.mode == "r":
        msg = (
            f"{store.path} was opened for reading only. Open it with vx.io.open_store(path, 'r+') to write results into it, or name "
            "another file with path=."
        )
        raise ValueError(msg)
    return store


def _check_path(path: Path, *, overwrite: bool) -> None:
    if path.suffix not in SUFFIXES:
        msg = f"path={str(path)!r} should end in {' or '.join(SUFFIXES)}."
        raise ValueError(msg)
    if not path.resolve().parent.is_dir():
        msg = f"{path.resolve().parent} is not a folder. Create it first, or choose another path=."
        raise FileNotFoundError(msg)
    _check_free(path, overwrite=overwrite)
    if path.exists() and path.is_dir() != (path.suffix == ".zarr"):
        msg = f"{path} exists and is {'a folder' if path.is_dir() else 'a file'}, which {path.suffix} is not. Choose another path=."
        raise FileExistsError(msg)


def _check_not_read(adata: AnnData, path: Path, store: Store | None) -> None:
    """Raise if matrices of ``adata`` are read from this path, except by :func:`open_anndata`, which reads the new file then."""
    target = path.resolve()
    if store is not None and store.path == target:
        return
    for name in (None, *(name for name in adata.layers if name is not None)):
        matrix = adata.X if name is None else adata.layers[name]
        if any(path_of(stored) == target for stored in stored_behind(matrix)):
            msg = (
                f"{path} is where {matrix_name(name)} is read from, so it cannot be replaced while this AnnData is used. Name another file, "
                f"path={str(path.with_name(f'{path.stem}_fitted{path.suffix}'))!r}, or open it with vx.io.open_store(path, 'r+') to write into it."
            )
            raise ValueError(msg)


def _check_free(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        msg = f"{path} already exists. Choose another path=, or replace it with overwrite=True."
        raise FileExistsError(msg)


def _check_cells(adata: AnnData, store: Store) -> None:
    if not store.path.exists():
        msg = (
            f"{store.path}, which adata was opened from and which holds its counts, does not exist any more. Put it back, or open the "
            "counts where they are now."
        )
        raise FileNotFoundError(msg)
    found = size_of_store(store.path)
    if found != adata.shape:
        msg = (
            f"adata has {adata.n_obs} cells x {adata.n_vars} genes, but {store.path}, which it was opened from, has {found[0]} x {found[1]}. "
            "Load the part, adata = adata[cells, genes].to_memory(), and write it with adata.write_h5ad(path)."
        )
        raise ValueError(msg)
