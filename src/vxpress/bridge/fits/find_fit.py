"""Find a fit: in the AnnData itself, in another one, or in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from anndata import AnnData

from vxpress._keys import Keys
from vxpress._mudata import MuData, is_mudata
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.open_files import SUFFIX, as_path, existing, read_model_file, read_uns
from vxpress.bridge.fits.results import check_format, is_fit
from vxpress.core import rule

Model: TypeAlias = AnnData | MuData | str | Path | None


def find_fit(adata: AnnData, model: Model, key: str) -> Fit:
    """Return the fit named ``key`` in ``model``: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``adata`` itself."""
    fit = _find(adata, model, key)
    # compiled loops are used for few cells too if they were for the fit, so the same cells give the same bits
    params = fit.params
    rule.reads(1, params.n_values or params.n_train * params.model.n_genes)
    return fit


def _find(adata: AnnData, model: Model, key: str) -> Fit:
    if model is None:
        return _from_uns(adata.uns, key, "adata", hint=True)
    if isinstance(model, AnnData) or is_mudata(model):
        return _from_uns(model.uns, key, "model", hint=False)
    path = existing("model", as_path("model", model, otherwise="an AnnData, None or "))
    if path.suffix == SUFFIX:
        stored, _ = read_model_file(path)
        check_format(stored, str(path))
        return Fit.from_uns(stored)
    name = Keys.of(key).uns
    stored, found = read_uns(path, name)
    return _from_uns({name: stored}, key, str(path), hint=False, found=found)


def _from_uns(uns: Mapping[str, Any], key: str, where: str, *, hint: bool, found: list[str] | None = None) -> Fit:
    name = Keys.of(key).uns
    if name not in uns or not is_fit(uns[name]):
        found = [str(k) for k, value in uns.items() if is_fit(value)] if found is None else found
        msg = (
            f"{where}.uns[{name!r}] holds no fit (fits found: {found or 'none'}). "
            + ("Run vx.tl.fit_vae(adata) first, or name" if hint else "Name")
            + " the AnnData or file that holds it with model=, and its name with key=."
            + (
                " ad.concat drops uns: concatenate with uns_merge='same', or pass the original AnnData as model=."
                if hint
                else ""
            )
        )
        raise KeyError(msg)
    check_format(uns[name], f"{where}.uns[{name!r}]")
    return Fit.from_uns(uns[name])
