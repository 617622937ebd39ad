"""``vx.io.open_store``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from anndata import AnnData

from vxpress._checks import check_choice
from vxpress._entry import entry
from vxpress.bridge.fits.open_files import as_path
from vxpress.bridge.read.opening import open_anndata

Mode = Literal["r", "r+"]


@entry
def open_store(path: str | Path, mode: Mode = "r") -> AnnData:
    """Open an AnnData on disk without reading its matrices.

    Annotations are read into memory: ``obs``, ``var``, ``uns``, and entries of ``obsm``, ``varm``, ``obsp`` and ``varp`` up to
    1 GB each. ``X``, layers and larger entries stay on disk, and all functions of this package read them in blocks. Their
    memory therefore does not grow with the size of the matrices.

    Parameters
    ----------
    path
        An ``.h5ad`` file, a zarr store (format 2 or 3, also with shards), or a collection of annbatch, which is a zarr store
        with an AnnData in each of ``dataset_0``, ``dataset_1`` and so on. The cells of a collection are read as one AnnData.
        Matrices are fastest in CSR format or dense, because cells are then stored next to each other.
    mode
        ``"r"`` (default) never writes to the store. With ``"r+"``, :func:`write_results` writes results into it, and
        matrices of results that are larger than memory are written there when they are computed.

    Returns
    -------
    An AnnData. Its ``X`` and layers are :class:`anndata.abc.CSRDataset` or :class:`anndata.abc.CSCDataset` if they are sparse, and
    :class:`dask.array.Array` if they are dense or belong to a collection. ``adata.to_memory()`` reads everything.

    Raises
    ------
    FileNotFoundError
        If there is no such path.
    ValueError
        If the store is damaged or holds no AnnData, or if the AnnData of a collection have different genes.
    ImportError
        If zarr or dask is needed and not installed: ``pip install "vxpress[outofcore]"``.

    See Also
    --------
    write_results : write the results into the store.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import vxpress as vx
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "pbmc.h5ad"
    >>> vx.datasets.pbmc68k_reduced().write_h5ad(path)
    >>> adata = vx.io.open_store(path)
    >>> adata.X
    CSRDataset: backend hdf5, shape (700, 765), data_dtype float32
    >>> vx.tl.fit_vae(adata, max_epochs=1)
    >>> adata.obsm["X_vae"].shape
    (700, 20)
    """
    check_choice("mode", mode, Mode)
    return open_anndata(as_path("path", path), mode)
