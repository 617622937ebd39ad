"""Write an AnnData into the store that it was opened from, or as a new store: completely or not at all.

A store is never changed in place. The new one is made next to it and takes its place in one step. In it, what was not read into
memory is copied as it is: chunks of zarr as links, which take no time and no space, and datasets of HDF5 without decompressing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset

from vxpress._h5ad import new_h5ad, nullable_strings
from vxpress._lazy import in_memory
from vxpress._whole import flush, repeat_tree, whole
from vxpress.bridge.read.opened import RESULTS, Part, Parts, Store, as_dask, on_disk, open_root, store_of

SLOTS = ("obsm", "varm", "obsp", "varp", "layers")
# uncompressed size of a chunk of the arrays written here, and of the rows that are in memory while they are written
CHUNK_BYTES, BLOCK_BYTES = 4_000_000, 64_000_000
# arrays above this size are written in blocks of rows
LARGE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Kept:
    """An entry that is already in the store, and stays as it is."""


def write_store(
    adata: AnnData, target: Path, origin: Store | None, *, check: Callable[[], None] = lambda: None
) -> None:
    """Write everything that ``adata`` holds to ``target``, which is replaced when it is complete.

    ``origin`` is the store that ``adata`` was opened from, or None; with ``target`` that store, only what is in memory is written.
    ``check`` is called before the store is replaced.
    """
    same = origin is not None and _is(origin.path, target)
    whole_store = not same and (origin is None or origin.kind != _kind_of_name(target))
    adata.strings_to_categoricals()
    entries = _entries(adata, None if whole_store else origin)
    with whole(target, check) as new, nullable_strings():
        if new.suffix == ".h5ad":
            with new_h5ad(new) as file, _source_of(adata, None if whole_store else origin) as source:
                _write_group(file, entries, source)
            flush(new)
            return
        if whole_store:
            _write_zarr(new, entries)
            return
        assert origin is not None  # noqa: S101 - otherwise the whole store is written
        kept = {name for name, value in entries.items() if isinstance(value, _Kept)}
        repeat_tree(origin.path, new, without=_replaced(origin, kept), link=same)
        _write_zarr(new, entries, below=RESULTS if origin.kind == "collection" else "")


def _kind_of_name(target: Path) -> str:
    return "h5ad" if target.suffix == ".h5ad" else "zarr"


def _is(one: Path, other: Path) -> bool:
    return other.exists() and one.exists() and one.samefile(other)


def _entries(adata: AnnData, origin: Store | None) -> dict[str, Any]:
    """Return what is to be written by name; those that ``origin`` already holds are marked."""
    found: dict[str, Any] = {"obs": adata.obs, "var": adata.var, "uns": dict(adata.uns)}
    if adata.X is not None:
        found["X"] = adata.X
    for slot in SLOTS:
        found |= {f"{slot}/{name}": value for name, value in getattr(adata, slot).items() if name is not None}
    if origin is not None:
        found = {name: _Kept() if _stored_as(value, origin, name) else value for name, value in found.items()}
        if origin.kind != "collection":
            found |= {"raw": _Kept()} if "raw" in open_root(origin.path) else {}
    elif adata.raw is not None:
        found["raw"] = adata.raw
    return {name: _as_lazy(value) for name, value in found.items()}


def _stored_as(value: Any, origin: Store, name: str) -> bool:
    """Return whether a value is the entry ``name`` of the store, and not in memory."""
    if isinstance(value, (CSRDataset, CSCDataset)):
        return _place_of(value.group) == (origin.path, name)
    parts = store_of(value)
    if parts is not None:
        places = {
            (part.path, part.element.split("/", 1)[-1] if origin.kind == "collection" else part.element)
            for part in parts
        }
        return places == {(origin.path, name)}
    return on_disk(value) and not hasattr(value, "dask") and _place_of(value) == (origin.path, name)


def _place_of(element: Any) -> tuple[Path, str]:
    """Return the store of an element of h5py or zarr, and its name there."""
    name = str(element.name).strip("/")
    if hasattr(element, "file"):
        return Path(element.file.filename).resolve(), name
    root = getattr(element.store, "root", None)
    return (Path(root).resolve() if root is not None else Path(), name)


def _as_lazy(value: Any) -> Any:
    """Return a matrix on disk as a dask array, which anndata writes in chunks."""
    if isinstance(value, (CSRDataset, CSCDataset)) or (on_disk(value) and not hasattr(value, "dask")):
        return as_dask(Parts([Part(Path(), "", 0, value.shape[0], value)]))
    # subclasses of arrays, such as memory maps
    return np.asarray(value) if isinstance(value, np.memmap) else value


@contextmanager
def _source_of(adata: AnnData, origin: Store | None) -> Iterator[Any]:
    """Yield the HDF5 file of the store, from which entries are copied."""
    if origin is None:
        yield None
    elif adata.isbacked:
        if not adata.file.is_open:
            adata.file.open()
        yield adata.file._file
    else:
        import h5py

        with h5py.File(origin.path, "r") as file:
            yield file


def _replaced(origin: Store, kept: set[str]) -> list[str]:
    """Return the entries of a zarr store that do not remain as they are."""
    root = open_root(origin.path)
    if origin.kind == "collection":
        within = root.get(RESULTS, {})
        prefix = f"{RESULTS}/"
    else:
        within, prefix = root, ""
    present = [name for name in ("obs", "var", "uns", "X", "raw") if name in within]
    present += [f"{slot}/{name}" for slot in SLOTS if slot in within for name in within[slot]]
    return [prefix + name for name in present if name not in kept]


def _write_zarr(path: Path, entries: Mapping[str, Any], below: str = "") -> None:
    """Write entries into a zarr store, which is made if it does not exist, and describe all of it at its root."""
    import zarr

    described = not path.exists() or _is_described(path)
    root = (
        zarr.open_group(str(path), mode="r+", use_consolidated=False)
        if path.exists()
        else zarr.open_group(str(path), mode="w", zarr_format=3)
    )
    _write_group(root.require_group(below) if below else root, entries, None)
    if described:
        with warnings.catch_warnings():
            # all readers of zarr that do not know this summary ignore it
            warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
            zarr.consolidate_metadata(root.store)


def _is_described(path: Path) -> bool:
    """Return whether the root of a zarr store describes all entries."""
    import json

    if (path / ".zmetadata").exists():
        return True
    file = path / "zarr.json"
    return file.exists() and bool(json.loads(file.read_text(encoding="utf-8")).get("consolidated_metadata"))


def _write_group(group: Any, entries: Mapping[str, Any], source: Any) -> None:
    """Write the entries of an AnnData; those that are kept are copied from ``source``, or are there already."""
    from anndata.io import write_elem

    group.attrs["encoding-type"], group.attrs["encoding-version"] = "anndata", "0.1.0"
    for slot in SLOTS:
        if slot not in group:
            write_elem(group, slot, {})
    for name, value in entries.items():
        slot, _, key = name.rpartition("/")
        into = group[slot] if slot else group
        if isinstance(value, _Kept):
            if source is not None:
                source.copy(source[name], into, key)
        elif name == "raw":
            _write_raw(into.create_group(key), value)
        elif (
            isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind == "f" and value.nbytes > LARGE_BYTES
        ):
            _write_rows(into, key, value)
        else:
            write_elem(into, key, value)


def _write_raw(group: Any, raw: Any) -> None:
    """Write ``adata.raw``, whose matrix and genes may be on disk."""
    from anndata.io import write_elem

    group.attrs["encoding-type"], group.attrs["encoding-version"] = "raw", "0.1.0"
    parts = {
        "X": _as_lazy(raw.X),
        "var": in_memory(raw.var),
        "varm": {name: in_memory(raw.varm[name]) for name in raw.varm},
    }
    for name, value in parts.items():
        write_elem(group, name, value)


def _write_rows(group: Any, name: str, array: np.ndarray) -> None:
    """Write a large array, which may be in a file, in blocks of rows; a chunk holds whole rows."""
    n, width = array.shape
    row_bytes = max(1, width * array.dtype.itemsize)
    rows = min(n, max(1, CHUNK_BYTES // row_bytes))
    create = group.create_array if hasattr(group, "create_array") else group.create_dataset
    stored = create(name, shape=array.shape, dtype=array.dtype, chunks=(rows, width))
    stored.attrs["encoding-type"], stored.attrs["encoding-version"] = "array", "0.2.0"
    step = rows * max(1, BLOCK_BYTES // (rows * row_bytes))
    for start in range(0, n, step):
        stored[start : start + step] = np.ascontiguousarray(array[start : start + step])
