"""``vx.save_model`` and ``vx.load_model``: models as separate files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, Keys
from vxpress._mudata import MuData
from vxpress.bridge.fits.find_fit import find_fit
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.model_file import write_fit
from vxpress.bridge.fits.open_files import SUFFIX, as_path, existing, read_model_file
from vxpress.bridge.fits.results import check_format
from vxpress.bridge.read.adata import check_anndata


@entry
@takes_mudata("cells")
def save_model(
    adata: AnnData | MuData, path: str | Path, *, modality: str | None = None, key: str = DEFAULT_KEY
) -> None:
    """Save a fitted model, without the cells, to one safetensors file.

    Parameters
    ----------
    adata
        Holds a fit of :func:`~vxpress.tl.fit_vae`.
    path
        File to write, ending in ``.safetensors``. An existing file is replaced only when the new one is complete.
    modality
        If ``adata`` is a MuData, the modality that holds the fit, for example ``"rna"``.
    key
        Name of the fit: the ``key_added`` of the call that made it.

    Raises
    ------
    KeyError
        If ``adata`` holds no fit of this name.
    ValueError
        If the path does not end in ``.safetensors``, or the fit is damaged.
    FileNotFoundError
        If its folder does not exist.
    OSError
        If the path is a folder, or cannot be written. An existing file is then unchanged.

    Examples
    --------
    >>> import tempfile, pathlib, vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> reference, query = adata[:600].copy(), adata[600:].copy()
    >>> vx.tl.fit_vae(reference, max_epochs=2)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "pbmc.safetensors"
    >>> vx.save_model(reference, path)
    >>> vx.tl.encode(query, model=path)
    """
    check_anndata(adata)
    path = as_path("path", path)
    if path.suffix != SUFFIX:
        msg = f"path={str(path)!r} should end in {SUFFIX}."
        raise ValueError(msg)
    if path.is_dir():
        msg = f"path={str(path)!r} is a folder. Name a file, for example {str(path / ('model' + SUFFIX))!r}."
        raise IsADirectoryError(msg)
    fit = find_fit(adata, None, key)  # a damaged fit is not saved
    write_fit(fit.to_uns(), key, path)


@entry
def load_model(path: str | Path) -> AnnData:
    """Load a model saved by :func:`save_model`.

    Parameters
    ----------
    path
        File written by :func:`save_model`.

    Returns
    -------
    An AnnData without cells, with the genes of the fit, and the fit in ``uns``. Pass it as ``model=`` to any function with this
    argument. Nothing in the file is executed.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    OSError
        If the path is a folder, or the file cannot be read.
    ValueError
        If the file is damaged, has another format version, or is not a model.

    Examples
    --------
    >>> import tempfile, pathlib, vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=2)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "pbmc.safetensors"
    >>> vx.save_model(adata, path)
    >>> vx.load_model(path).shape
    (0, 765)
    """
    path = existing("path", as_path("path", path))
    stored, key = read_model_file(path)
    check_format(stored, str(path))
    fit = Fit.from_uns(stored)
    return AnnData(
        X=sparse.csr_matrix((0, len(fit.genes)), dtype=np.float32),
        var=pd.DataFrame(index=pd.Index(fit.genes.astype(str))),
        uns={Keys.of(key).uns: stored},
    )
