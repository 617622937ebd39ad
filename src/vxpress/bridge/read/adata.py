"""Check that an argument is an AnnData, and that its genes have names of their own."""

from __future__ import annotations

import os
from typing import Any

from anndata import AnnData

from vxpress.bridge.read.blockwise import is_dask
from vxpress.bridge.read.opened import on_disk


def check_anndata(adata: object) -> None:
    """Raise ``TypeError`` unless this is an AnnData; the message says how to get one from what it is."""
    if isinstance(adata, AnnData):
        return
    kind, hint = type(adata).__name__, ""
    if kind == "MuData":
        hint = " Pass one modality, for example mdata.mod['rna']."
    elif isinstance(adata, (str, os.PathLike)):
        hint = " Read a file with anndata.read_h5ad(path), or with vx.load_model(path) if it holds only weights (.safetensors)."
    msg = f"An AnnData is expected as first argument; found {kind}.{hint}"
    raise TypeError(msg)


def check_adata(adata: Any, *, copy: bool) -> None:
    """Raise unless ``adata`` is an AnnData that results can be written to."""
    check_anndata(adata)
    if adata.n_obs == 0 or adata.n_vars == 0:
        msg = f"adata has {adata.n_obs} cells and {adata.n_vars} genes; at least one of each is expected."
        raise ValueError(msg)
    if adata.isbacked and (copy or adata.is_view):
        what = "copy=True cannot copy a backed AnnData" if copy else "A view of a backed AnnData cannot hold results"
        msg = f"{what}. Load it first, adata = adata.to_memory(), or pass the backed AnnData itself."
        raise ValueError(msg)
    stored = [] if adata.is_view or not copy else _on_disk(adata)
    if stored:
        msg = f"copy=True cannot copy {stored[0]}, which is on disk. Load everything first, adata = adata.to_memory(), or leave copy= out."
        raise ValueError(msg)


def _on_disk(adata: AnnData) -> list[str]:
    """Return the matrices that anndata cannot copy: all on disk except dask arrays, of which a copy is as lazy."""
    found = {"adata.X": adata.X} if adata.X is not None else {}
    for slot in ("layers", "obsm", "obsp"):
        found |= {f"adata.{slot}[{name!r}]": value for name, value in getattr(adata, slot).items() if name is not None}
    return [name for name, value in found.items() if on_disk(value) and not is_dask(value)]


def check_gene_names(adata: AnnData) -> None:
    """Raise if gene names are not unique."""
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()
        msg = f"adata.var_names are not unique (for example {list(repeated[:3])}). Make them unique: adata.var_names_make_unique()."
        raise ValueError(msg)
