"""Make an AnnData of an opened store: annotations in memory, matrices on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg
from scipy import sparse

from vxpress._whole import remove_leftovers
from vxpress.bridge.read.opened import (
    MAX_LOADED_BYTES,
    RESULTS,
    Mode,
    Part,
    Parts,
    Store,
    as_dask,
    as_matrix,
    is_matrix,
    kind_of,
    members,
    n_bytes,
    open_root,
    remember,
)

AXES = ("obsm", "varm", "obsp", "varp")


def open_anndata(path: Path, mode: Mode) -> AnnData:
    """Open a store; ``X`` and layers, and further matrices above 1 GB, stay on disk."""
    if not path.exists():
        # where folders cannot be exchanged, a killed writer may have moved it away
        remove_leftovers(path.resolve().parent)
    if not path.exists():
        msg = f"{path} does not exist."
        raise FileNotFoundError(msg)
    try:
        root = open_root(path)
        kind = kind_of(root, path)
        adata = _collection(root, path) if kind == "collection" else _single(root, path)
    except (MemoryError, ImportError):
        raise
    except Exception as error:
        # errors of h5py, zarr and anndata on a damaged file have no common type
        msg = f"{path} cannot be opened as an AnnData: {error}"
        raise ValueError(msg) from error
    remember(adata, Store(path.resolve(), mode, kind))
    return adata


def _single(root: Any, path: Path) -> AnnData:
    from anndata.io import read_elem

    found: dict[str, Any] = {name: read_elem(root[name]) for name in ("obs", "var", "uns") if name in root}
    if "X" in root:
        found["X"] = _matrix(root["X"], path, "X")
    for slot in (*AXES, "layers"):
        names = list(root[slot]) if slot in root else []
        # layers are as large as X; others are read if they fit
        limit = -1 if slot == "layers" else MAX_LOADED_BYTES
        found[slot] = {name: _limited(root[slot][name], path, f"{slot}/{name}", limit) for name in names}
    if "raw" in root and "X" in root["raw"]:
        raw = {"X": _matrix(root["raw/X"], path, "raw/X"), "var": read_elem(root["raw/var"])}
        found["raw"] = raw | ({"varm": read_elem(root["raw/varm"])} if "varm" in root["raw"] else {})
    return _made(found)


def _made(found: Mapping[str, Any]) -> AnnData:
    columns = {axis: found.get(axis) for axis in ("obs", "var")}
    if "X" not in found and any(frame is None or not len(frame) for frame in columns.values()):
        msg = "it has no X, and no names of its cells or genes."
        raise ValueError(msg)
    return AnnData(**found)


def _limited(element: Any, path: Path, name: str, limit: int) -> Any:
    from anndata.io import read_elem

    if not is_matrix(element) or n_bytes(element) <= limit:
        return read_elem(element)
    return _matrix(element, path, name)


def _matrix(element: Any, path: Path, name: str) -> Any:
    """Return a stored matrix on disk: anndata's class if it is sparse, otherwise a dask array."""
    matrix = as_matrix(element)
    if hasattr(matrix, "format"):
        return matrix
    return as_dask(Parts([Part(path.resolve(), name, 0, matrix.shape[0], matrix)]))


def _collection(root: Any, path: Path) -> AnnData:
    """Return all AnnData of a collection as one, with what was written for all cells."""
    from anndata.io import read_elem

    names = members(root)
    frames = [read_elem(root[name]["obs"]) for name in names]
    genes = [read_elem(root[name]["var"]) for name in names]
    _check_same_genes(names, genes)
    n = [len(frame) for frame in frames]
    edges = [0, *np.cumsum(n).tolist()]

    def joined(element: str) -> Any:
        whole = Parts([Part(path.resolve(), f"{name}/{element}", *edges[i : i + 2]) for i, name in enumerate(names)])
        small = sum(n_bytes(root[f"{name}/{element}"]) for name in names) <= MAX_LOADED_BYTES
        return whole.read(0, edges[-1]) if small and element.startswith("obsm/") else as_dask(whole)

    found: dict[str, Any] = {
        "obs": _stacked(frames),
        "var": genes[0],
        "uns": _shared_uns(root, names),
        "layers": {},
        "obsm": {},
    }
    if all("X" in root[name] for name in names):
        found["X"] = joined("X")
    for slot in ("layers", "obsm"):
        of_each = [set(root[name][slot]) if slot in root[name] else set() for name in names]
        for name in sorted(set.intersection(*of_each)):
            if all(is_matrix(root[f"{part}/{slot}/{name}"]) for part in names):
                found[slot][name] = joined(f"{slot}/{name}")
    return _made(_with_results(found, root, path))


def _check_same_genes(names: Sequence[str], genes: Sequence[pd.DataFrame]) -> None:
    for name, var in zip(names, genes, strict=True):
        if not var.index.equals(genes[0].index):
            msg = f"its AnnData {names[0]!r} and {name!r} have different genes, or genes in another order. Write it again with the same genes."
            raise ValueError(msg)


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Stack the annotation of cells; a column that is categorical in all parts stays so."""
    whole = pd.concat([frame.astype({c: object for c in frame if _is_categorical(frame[c])}) for frame in frames])
    for column in whole:
        parts = [frame[column] for frame in frames if column in frame]
        if all(map(_is_categorical, parts)):
            # in the order in which they first appear
            names = pd.unique(np.concatenate([part.cat.categories.to_numpy(dtype=object) for part in parts]))
            whole[column] = pd.Categorical(whole[column], categories=names)
    return whole


def _is_categorical(column: pd.Series) -> bool:
    return isinstance(column.dtype, pd.CategoricalDtype)


def _shared_uns(root: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the entries of ``uns`` that are the same in all parts, as ``anndata.concat(uns_merge="same")`` does."""
    from anndata import concat
    from anndata.io import read_elem

    uns = [read_elem(root[name]["uns"]) if "uns" in root[name] else {} for name in names]
    empty = [AnnData(sparse.csr_matrix((1, 1), dtype=np.float32), uns=each) for each in uns]
    return dict(concat(empty, uns_merge="same", index_unique="-").uns)


def _with_results(found: dict[str, Any], root: Any, path: Path) -> dict[str, Any]:
    """Return the parts of a collection with what was written for all of its cells, if these are still the same."""
    from anndata.io import read_elem

    if RESULTS not in root:
        return found
    group = root[RESULTS]
    obs = read_elem(group["obs"])
    if not obs.index.equals(found["obs"].index):
        logg.warning(
            f"{path} holds results of other cells than it has now ({len(obs)} and {len(found['obs'])} cells), which are not read. "
            "vx.io.write_results replaces them."
        )
        return found
    found |= {"obs": obs, "var": read_elem(group["var"]), "uns": read_elem(group["uns"])}
    for slot in (*AXES, "layers"):
        limit = -1 if slot == "layers" else MAX_LOADED_BYTES
        for name in group.get(slot, ()):
            element = f"{RESULTS}/{slot}/{name}"
            found.setdefault(slot, {})[name] = _limited(root[element], path, element, limit)
    return found
