"""Open AnnData stores without reading their matrices: ``.h5ad`` files, zarr stores, and collections of several AnnData.

``X`` and layers stay on disk. A sparse matrix of one AnnData is anndata's own ``CSRDataset`` or ``CSCDataset``. Any other matrix on
disk is a dask array whose name is registered here, so that readers can find the parts of the store behind it and read them
without dask (:func:`store_of`).
"""

from __future__ import annotations

import re
import secrets
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from vxpress.bridge.read.zarr_codecs import fast_codecs

Mode: TypeAlias = Literal["r", "r+"]
Kind: TypeAlias = Literal["h5ad", "zarr", "collection"]

MEMBER = re.compile(r"dataset_([0-9]+)")
# group of a collection with what was written for all of its cells
RESULTS = "vxpress_results"
# entries of obsm, obsp, varm and varp above this size stay on disk
MAX_LOADED_BYTES = 1_000_000_000
# size of a chunk of the dask arrays made here
CHUNK_BYTES = 32_000_000


@dataclass(frozen=True)
class Store:
    """A store on disk that an AnnData was opened from."""

    path: Path
    mode: Mode
    kind: Kind


@dataclass
class Part:
    """Consecutive rows of a matrix, stored as one element of a store; ``start`` and ``stop`` count the rows of the matrix.

    It is opened on first use, and in every process again: opened files do not travel to other processes.
    """

    path: Path
    element: str
    start: int
    stop: int
    _opened: Any = field(default=None, repr=False, compare=False)

    @property
    def matrix(self) -> Any:
        """The element: a ``CSRDataset``, a ``CSCDataset``, or an array of zarr or h5py."""
        if self._opened is None:
            with fast_codecs():
                self._opened = as_matrix(open_root(self.path)[self.element])
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": None}


class Parts:
    """The parts of a matrix on disk, in order."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def read(self, start: int, stop: int) -> Any:
        """Read consecutive rows, as a CSR matrix or an array."""
        found = [
            part.matrix[max(start, part.start) - part.start : min(stop, part.stop) - part.start]
            for part in self.parts
            if part.start < stop and start < part.stop
        ]
        if len(found) == 1:
            return found[0]
        return sparse.vstack(found, format="csr") if sparse.issparse(found[0]) else np.concatenate(found)


# references without callbacks, which a deletion would run as Python code: an exception that is raised in it, such as that of
# Ctrl-C, would be lost. Entries of deleted objects are removed with the next entry.
_PARTS: dict[str, weakref.ref[Parts]] = {}
_STORES: dict[int, tuple[weakref.ref[AnnData], Store]] = {}


def store_of(matrix: Any) -> Parts | None:
    """Return the parts of a store behind a matrix of :func:`open_anndata`; None for any other matrix.

    A ``CSRDataset``, a ``CSCDataset`` and arrays of h5py and zarr are their own only part and are not looked up here.
    """
    name = getattr(matrix, "name", None)
    found = _PARTS.get(name) if isinstance(name, str) and hasattr(matrix, "dask") else None
    return None if found is None else found()


def opened_from(adata: AnnData) -> Store | None:
    """Return the store that an AnnData was opened from, by :func:`open_anndata` or in backed mode; None if there is none."""
    found = _STORES.get(id(adata))
    if found is not None and found[0]() is adata:
        return found[1]
    if adata.isbacked and not adata.is_view:
        mode: Mode = "r" if adata.file._filemode == "r" else "r+"
        return Store(Path(adata.filename).resolve(), mode, "h5ad")
    return None


def remember(adata: AnnData, store: Store) -> None:
    """Record that ``adata`` holds the cells and genes of ``store``."""
    for key, (found, _) in list(_STORES.items()):
        if found() is None:
            _STORES.pop(key, None)
    _STORES[id(adata)] = (weakref.ref(adata), store)


def register(name: str, parts: Parts) -> None:
    """Record the parts behind a dask array, by the name of the array."""
    for key, found in list(_PARTS.items()):
        if found() is None:
            _PARTS.pop(key, None)
    _PARTS[name] = weakref.ref(parts)


def on_disk(matrix: Any) -> bool:
    """Return whether the values of a matrix are not in memory: anndata's, h5py's, zarr's or dask's."""
    return isinstance(matrix, (CSRDataset, CSCDataset)) or not (
        isinstance(matrix, np.ndarray) or sparse.issparse(matrix) or not hasattr(matrix, "chunks")
    )


def open_root(path: Path) -> Any:
    """Open the root group of a store for reading."""
    if path.is_dir():
        import zarr

        return zarr.open_group(str(path), mode="r")
    import h5py

    return h5py.File(path, "r")


def kind_of(root: Any, path: Path) -> Kind:
    """Return what a store is; raises ``ValueError`` if it is no AnnData."""
    if "mod" in root and "obs" in root:
        msg = "it is a MuData. Read it with mudata.read_h5mu(path), or with mudata.read_zarr(path)."
        raise ValueError(msg)
    if path.is_file():
        return "h5ad"
    if "obs" in root and "var" in root:
        return "zarr"
    if members(root):
        return "collection"
    msg = (
        f"it is neither an AnnData nor a collection of them: it holds {sorted(map(str, root.keys()))[:8] or 'nothing'}; 'X', 'obs' "
        "and 'var', or 'dataset_0', 'dataset_1' and so on are expected."
    )
    raise ValueError(msg)


def members(root: Any) -> list[str]:
    """Return the names of the AnnData of a collection, in their order."""
    found = [name for name in map(str, root.keys()) if MEMBER.fullmatch(name)]
    return sorted(found, key=lambda name: int(name.split("_")[1]))


def size_of_store(path: Path) -> tuple[int, int]:
    """Return the number of cells and of genes in a store."""
    root = open_root(path)
    parts = [root[name] for name in members(root)] if kind_of(root, path) == "collection" else [root]
    return sum(_length(part["obs"]) for part in parts), _length(parts[0]["var"])


def _length(frame: Any) -> int:
    """Return the number of rows of a stored data frame, in the format of anndata 0.7 and later, or earlier."""
    if hasattr(frame, "shape"):
        return int(frame.shape[0])
    names = frame.attrs.get("_index", "_index")
    stored = frame[names]
    return int((stored if hasattr(stored, "shape") else stored["values"]).shape[0])


def as_matrix(element: Any) -> Any:
    """Return a stored matrix without reading it."""
    if hasattr(element, "shape"):
        return element
    from anndata.io import sparse_dataset

    return sparse_dataset(element)


def is_matrix(element: Any) -> bool:
    """Return whether a stored element is an array or a sparse matrix."""
    return hasattr(element, "shape") or str(element.attrs.get("encoding-type", "")) in ("csr_matrix", "csc_matrix")


def n_bytes(element: Any) -> int:
    """Return the size of a stored element in memory, from its metadata alone."""
    if hasattr(element, "shape"):
        return int(np.prod(element.shape)) * max(1, element.dtype.itemsize)
    return sum(n_bytes(element[name]) for name in element)


def as_dask(parts: Parts) -> Any:
    """Return a dask array of the rows of all parts, in chunks that do not cross the parts, and register it."""
    try:
        import dask.array as da
    except ImportError as error:
        msg = "This store needs dask: pip install 'vxpress[outofcore]', or pip install dask."
        raise ImportError(msg) from error
    first = parts.parts[0].matrix
    row_bytes = max(1, sum(n_bytes(_element(part.matrix)) for part in parts) // max(1, parts.parts[-1].stop))
    step = max(1, CHUNK_BYTES // row_bytes)
    rows = [min(step, part.stop - at) for part in parts for at in range(part.start, part.stop, step)]
    wide = len(first.shape) > 1
    array = da.map_blocks(
        _Chunk(parts),
        chunks=(tuple(rows), *((size,) for size in first.shape[1:])),
        dtype=np.result_type(*(part.matrix.dtype for part in parts)),
        meta=_meta(first) if wide else np.empty(0, dtype=first.dtype),
        name=f"vxpress-{secrets.token_hex(8)}",
    )
    register(array.name, parts)
    return array


def entry_on_disk(store: Store, name: str) -> Any:
    """Return a dense matrix that was written to a store, as a dask array."""
    element = f"{RESULTS}/{name}" if store.kind == "collection" else name
    stored = as_matrix(open_root(store.path)[element])
    return as_dask(Parts([Part(store.path, element, 0, stored.shape[0], stored)]))


@dataclass(frozen=True)
class _Chunk:
    """Function of a chunk; the array keeps its parts alive through it."""

    parts: Parts

    def __call__(self, block_info: Mapping[Any, Any]) -> Any:
        (start, stop), *_ = block_info[None]["array-location"]
        return self.parts.read(start, stop)


def _element(matrix: Any) -> Any:
    return matrix.group if isinstance(matrix, (CSRDataset, CSCDataset)) else matrix


def _meta(matrix: Any) -> Any:
    if isinstance(matrix, CSRDataset):
        return sparse.csr_matrix((0, 0), dtype=matrix.dtype)
    if isinstance(matrix, CSCDataset):
        return sparse.csc_matrix((0, 0), dtype=matrix.dtype)
    return np.empty((0,) * len(matrix.shape), dtype=matrix.dtype)
