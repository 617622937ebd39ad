"""Where a fit is looked for: in the AnnData itself, in another one, or in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import h5py
from anndata import AnnData
from anndata.io import read_elem

from vxpress._keys import Keys
from vxpress.bridge.file import read_fit
from vxpress.bridge.fit import Fit
from vxpress.bridge.store import check_format, is_fit

Model: TypeAlias = AnnData | str | Path | None


def find_fit(adata: AnnData, model: Model, key: str) -> Fit:
    """The fit with stem ``key`` in ``model``: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``adata`` itself."""
    if model is None:
        return _from_uns(adata.uns, key, "adata", hint=True)
    if isinstance(model, AnnData):
        return _from_uns(model.uns, key, "model", hint=False)
    if not isinstance(model, (str, Path)):
        msg = f"model= takes an AnnData, a path or None; found {type(model).__name__}."
        raise TypeError(msg)
    path = Path(model)
    if not path.exists():
        msg = f"model={str(path)!r} does not exist."
        raise FileNotFoundError(msg)
    if path.suffix == ".safetensors":
        stored, _ = read_fit(path)
        check_format(stored, str(path))
        return Fit.from_uns(stored)
    return _from_uns(_read_uns(path, Keys.of(key).uns), key, str(path), hint=False)


def _from_uns(uns: Mapping[str, Any], key: str, where: str, *, hint: bool) -> Fit:
    name = Keys.of(key).uns
    if name not in uns or not is_fit(uns[name]):
        found = [str(k) for k, value in uns.items() if is_fit(value)]
        msg = (
            f"{where}.uns[{name!r}] holds no fit (fits found: {found or 'none'}). "
            + ("Run vx.tl.fit_vae(adata) first, or name" if hint else "Name")
            + " the AnnData or file that holds it with model=, and its stem with key=."
            + (
                " ad.concat drops uns: concatenate with uns_merge='same', or pass the AnnData from before as model=."
                if hint
                else ""
            )
        )
        raise KeyError(msg)
    check_format(uns[name], f"{where}.uns[{name!r}]")
    return Fit.from_uns(uns[name])


def _read_uns(path: Path, name: str) -> Mapping[str, Any]:
    """One entry of ``uns`` of a stored AnnData, without reading the rest."""
    if path.is_dir():
        import zarr

        try:
            group = zarr.open_group(str(path), mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise unreadable(path, error) from error
        return {name: read_elem(group[f"uns/{name}"])} if f"uns/{name}" in group else {}
    try:
        with h5py.File(path, "r") as file:
            return {name: read_elem(file["uns"][name])} if name in file.get("uns", {}) else {}
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> ValueError:
    """What to raise where a file holds nothing that can hold a fit."""
    return ValueError(f"{str(path)!r} is neither an .h5ad, a zarr store nor a .safetensors file ({error}).")
